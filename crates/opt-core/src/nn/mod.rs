//! Layers and a small zoo.
