//! One set of cases run against every backend of the opt libraries.
