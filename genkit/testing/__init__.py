"""Laws that classes of a registry promise to keep, as functions that measure how well one does."""
