"""A rating study: people order the methods' images, as for the Mean Opinion Rank of the NTIRE challenge."""
