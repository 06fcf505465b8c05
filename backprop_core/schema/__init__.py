"""What may be asked (specs), what exists (refs, records, results), and the types of their fields."""
