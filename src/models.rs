//! Placeholder until the models are merged.

/// An order.
#[derive(Debug, Clone, serde::Serialize)]
pub struct Order;
/// A product.
#[derive(Debug, Clone, serde::Serialize)]
pub struct Product;
