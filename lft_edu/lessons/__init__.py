"""What a lesson's page needs besides figures: claims that are checked, predictions, tables, and what is done so far."""
