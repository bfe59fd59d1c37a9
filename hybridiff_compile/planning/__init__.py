"""What two devices will give, before anything is bought, downloaded or compiled."""
