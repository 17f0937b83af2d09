"""What every vector store has in common: items, filters, text queries and the interface `VectorStore`."""
