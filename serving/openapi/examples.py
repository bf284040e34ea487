"""Examples in the description of the API, by operation id. They are of the demo; lists are shortened."""

from typing import Any, Final

IDS: Final = {"user_id": "1", "item_id": "296", "event_id": "e-1", "name": "audio"}
"""Parameter -> its value in examples."""

CARD: Final[dict[str, Any]] = {
    "item_id": "2324",
    "title": "Life Is Beautiful (La Vita è bella)",
    "categories": ["Comedy", "Drama", "Romance", "War"],
    "image": None,
    "price": None,
}
"""An item as lists show it."""

SHOWN: Final[dict[str, Any]] = {**CARD, "score": 0.712, "position": 1, "propensity": 1.0, "explored": False}
"""An item at a position of a list."""

SLATE: Final[dict[str, Any]] = {
    "request_id": "b5bdebf8-0d7c-4c53-a1a5-4c0b7d1ce6a3",
    "user_id": "1",
    "placement": "home",
    "bundle": "bd3f5d64bffe102c",
    "variant": "default",
    "source": "model",
    "degraded": [],
    "items": [{**SHOWN, "probability": 0.021, "reason": "recent"}],
    "cursor": None,
    "trace": {"store": 0.7, "rank": 9.2, "log": 0.9},
}
"""A list for a user."""

CAMPAIGN: Final[dict[str, Any]] = {"name": "the campaign", "pin": {"item": "296", "position": 1}}
"""A rule."""

REQUESTS: Final[dict[str, Any]] = {
    "recommend": {"session": [{"item_id": "296", "event": "rating", "value": 5}], "limit": 2, "exclude": ["1"]},
    "recommend_lists": {"user_id": "1", "lists": [{"limit": 2}, {"limit": 2, "filter": {"categories": ["Drama"]}}]},
    "rank_items": {"user_id": "1", "items": ["296", "593", {"item_id": "draft-7", "title": "Toys in Space"}]},
    "search_items": {"text": "toys that come to life", "limit": 1},
    "post_events": [{"user_id": "1", "item_id": "296", "event": "rating", "value": 5, "event_id": "e-1"}],
    "import_items": '{"item_id": "296", "title": "Pulp Fiction"}\n{"item_id": "draft-7", "title": "Toys in Space"}\n',
    "put_rules": {"rules": [CAMPAIGN]},
    "preview": {"user_id": "1", "limit": 1, "rules": {"rules": [CAMPAIGN]}},
    "put_item": {"title": "Toys in Space", "categories": ["Animation"], "description": "Toys travel to the moon."},
    "patch_item": {"price": 7.5, "available": True},
    "merge_users": {"from": "anon-81c2"},
}
"""Operation id -> body of a request."""

RESPONSES: Final[dict[str, Any]] = {
    "get_recommendations": SLATE,
    "recommend": SLATE,
    "recommend_lists": {
        "lists": [SLATE, {**SLATE, "request_id": "b5bdebf8-0d7c-4c53-a1a5-4c0b7d1ce6a3.2", "items": []}]
    },
    "get_similar_items": {
        **SLATE,
        "user_id": None,
        "placement": "similar",
        "items": [{**SHOWN, "reason": "similar", "near": {"behaviour": 0.955, "text": 0.597}}],
    },
    "search_items": {
        **SLATE,
        "placement": "search",
        "items": [{**SHOWN, "reason": "search", "near": {"text": 0.648}}],
        "query": {"read": ["text"], "failed": []},
    },
    "rank_items": {
        "user_id": "1",
        "bundle": "bd3f5d64bffe102c",
        "source": "model",
        "degraded": [],
        "items": [
            {
                "item_id": "593",
                "position": 1,
                "score": 0.412,
                "probability": 0.0121,
                "known": True,
                "by_content": False,
            },
            {
                "item_id": "none",
                "position": 2,
                "score": None,
                "probability": None,
                "known": False,
                "by_content": False,
            },
        ],
        "trace": {"store": 0.6, "rank": 9.1},
    },
    "get_why_not": {
        "item_id": "296",
        "stage": "seen",
        "detail": "the user has seen the item, and the placement does not repeat items",
        "score": None,
        "rank": None,
        "degraded": [],
    },
    "post_events": {
        "accepted": 1,
        "rejected": 0,
        "degraded": [],
        "results": [
            {"status": "accepted", "event_id": "e-1", "known_item": True, "reason": None, "place": None},
        ],
    },
    "put_item": {"item_id": "296", "status": "accepted", "new": False},
    "patch_item": {"item_id": "296", "status": "accepted", "new": False},
    "list_items": {"items": [{"item_id": "1", "title": "Toy Story", "available": True}], "cursor": "1"},
    "import_items": {"accepted": 2, "new": 1, "rejected": 0, "refused": []},
    "get_user": {
        "user_id": "1",
        "status": "present",
        "events": 21,
        "positives": 13,
        "seen": 21,
        "likes": ["Crime", "Thriller"],
        "last_event": "2026-11-29T12:03:04.643622+00:00",
        "degraded": [],
    },
    "delete_user": {
        "user_id": "1",
        "status": "erased",
        "erased_at": "2026-11-30T09:15:00.120000+00:00",
        "places": [
            {"name": "event log", "erased": 87, "left": 0},
            {"name": "feature store", "erased": 2, "left": 0},
        ],
        "notes": ["this call does not reach rejected rows, slates and other files"],
    },
    "put_rules": {"rules": [CAMPAIGN], "fault": None},
    "get_rules": {"rules": [CAMPAIGN], "fault": None},
    "preview": {**SLATE, "items": [{**SHOWN, "item_id": "296", "title": "Pulp Fiction", "reason": "pinned"}]},
    "get_state": {
        "now": "2026-11-30T09:15:00.120000+00:00",
        "problems": {},
        "log": {"streams": [], "readers": [], "fault": None},
        "store": {
            "status": "filled",
            "latest": "2026-11-30T09:14:58.010000+00:00",
            "lag_seconds": 1.2,
            "lag_bytes": 0,
            "memory": 31457280,
            "memory_limit": None,
            "warning": None,
            "refresh": None,
        },
        "bundles": {
            "served": {
                "bundle": "bd3f5d64bffe102c",
                "configuration": "movielens",
                "code_version": "0.2.0",
                "trained_until": "2016-10-16T17:57:24+00:00",
                "written_at": "2026-11-30T02:10:11+00:00",
                "published": {
                    "at": "2026-11-30T02:10:12.300000+00:00",
                    "previous": None,
                    "by": "recsys",
                    "why": "accepted",
                },
                "tables": [
                    {
                        "placement": "home",
                        "note": "time cut",
                        "users": 133,
                        "events": 8120,
                        "splits": ["2e44fed8dedcce29"],
                        "figures": [{"name": "ndcg_at_10", "mean": 0.071, "low": 0.062, "high": 0.08}],
                    }
                ],
            },
            "before": None,
            "training": {"bundle": "bd3f5d64bffe102c", "at": "2026-11-30T02:10:11+00:00", "current": True},
            "nightly": None,
        },
    },
    "get_map": {
        "bundle": "bd3f5d64bffe102c",
        "method": "t-SNE",
        "categories": ["Action", "Comedy"],
        "items": ["296", "593"],
        "x": [31034, 30110],
        "y": [40211, 40902],
        "category": [1, 0],
    },
    "delete_item": {"item_id": "296", "status": "deleted"},
    "merge_users": {"user_id": "1", "from": "anon-81c2", "status": "accepted", "degraded": []},
    "undo_event": {"user_id": "1", "event_id": "e-1", "status": "accepted", "known": True, "degraded": []},
    "list_users": {"users": ["1", "251"], "degraded": []},
}
"""Operation id -> body of its response."""
