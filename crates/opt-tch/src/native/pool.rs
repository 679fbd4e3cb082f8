//! Memory of the processor that a session keeps between its runs; `pool.cpp` says why.

use std::ffi::c_void;
use std::marker::PhantomData;

unsafe extern "C" {
    fn opt_tch_pool_install();
    fn opt_tch_pool_new() -> *mut c_void;
    fn opt_tch_pool_free(pool: *mut c_void);
    fn opt_tch_pool_enter(pool: *mut c_void) -> *mut c_void;
}

/// Blocks of memory, by size.
#[derive(Debug)]
pub(crate) struct Pool(*mut c_void);

// SAFETY: what it points to guards its lists with a mutex.
unsafe impl Send for Pool {}

impl Pool {
    /// An empty pool. libtorch's allocator of the process is replaced at the first one.
    pub(crate) fn new() -> Pool {
        // SAFETY: takes nothing.
        unsafe { opt_tch_pool_install() };
        // SAFETY: takes nothing.
        Pool(unsafe { opt_tch_pool_new() })
    }

    /// What libtorch allocates on this thread comes from the pool until the result is dropped.
    pub(crate) fn enter(&self) -> Entered<'_> {
        // SAFETY: the pool outlives what is given back, which leaves it.
        Entered(unsafe { opt_tch_pool_enter(self.0) }, PhantomData)
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        // SAFETY: it was made by `opt_tch_pool_new`, and nobody is in it: that would borrow it.
        unsafe { opt_tch_pool_free(self.0) };
    }
}

/// A pool that is entered, and the one that was before; not to be sent to other threads.
pub(crate) struct Entered<'a>(*mut c_void, PhantomData<&'a Pool>);

impl Drop for Entered<'_> {
    fn drop(&mut self) {
        // SAFETY: the pool that was entered before is so still, further up on this thread.
        unsafe { opt_tch_pool_enter(self.0) };
    }
}
