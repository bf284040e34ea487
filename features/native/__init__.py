"""Models that embed several kinds of content in one space, behind features.spaces.Encoder."""
