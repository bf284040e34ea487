"""The files of a shop: rules about what is shown, and experiments. They are read again when they change."""
