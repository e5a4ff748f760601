"""The fit of gates that read text: what tells rows to forget from normal ones, in words."""
