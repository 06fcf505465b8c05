"""Adapter into adapter: SLAO and other strategies, and what a merge did."""
