//! CUDA's runtime through `librlhf_cuda.so`: device properties, allocator statistics.

use std::ffi::{CStr, c_char, c_void};
use std::sync::OnceLock;

use crate::TorchError;
use crate::dynamic::Library;
use crate::ffi::brief;
use crate::kernels::{beside_executable, use_device_kernels};

const FILE: &str = "librlhf_cuda.so";
const HINT: &str = "it is built beside the worker where the wheels of requirements.txt are installed; keep \
                    the two together";

type Status = *mut c_char;

/// What a device is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Properties {
    /// The product's name.
    pub name: String,
    /// Compute capability, as (9, 0).
    pub capability: (i32, i32),
    /// Streaming multiprocessors.
    pub multiprocessors: i32,
    /// Bytes of memory.
    pub total_bytes: u64,
    /// Bytes that nobody uses at the moment.
    pub free_bytes: u64,
}

/// What libtorch's allocator holds on one device, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Memory {
    /// Of living tensors.
    pub current_bytes: i64,
    /// The most that living tensors had since the start or [`Cuda::reset_peak`].
    pub peak_bytes: i64,
    /// Taken from the device, used or kept for later.
    pub reserved_bytes: i64,
}

/// Versions as CUDA numbers them: 13000 is 13.0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Versions {
    /// The newest CUDA that the driver supports.
    pub driver: i32,
    /// The runtime in use.
    pub runtime: i32,
}

/// Mirrors `rlhf_device_properties` in `cpp/cuda/runtime.cpp`.
#[repr(C)]
struct RawProperties {
    name: [c_char; 256],
    major: i32,
    minor: i32,
    multiprocessors: i32,
    total_bytes: i64,
    free_bytes: i64,
}

/// Work of a device that was recorded, or is being recorded: dropping it ends that, too.
#[derive(Debug)]
pub(crate) struct Recorded(*mut c_void);

impl Drop for Recorded {
    fn drop(&mut self) {
        // What cannot be freed any more is the end of the process anyway.
        if let Ok(Some(cuda)) = load() {
            // SAFETY: the graph is alive, and this is its owner.
            let _ = cuda.check("free", unsafe { (cuda.graph_free)(self.0) });
        }
    }
}

/// The loaded library.
pub struct Cuda {
    free: unsafe extern "C" fn(*mut c_char),
    device_count: unsafe extern "C" fn(*mut i32) -> Status,
    versions: unsafe extern "C" fn(*mut i32, *mut i32) -> Status,
    properties: unsafe extern "C" fn(i32, *mut RawProperties) -> Status,
    memory: unsafe extern "C" fn(i32, *mut Memory) -> Status,
    reset_peak: unsafe extern "C" fn(i32) -> Status,
    synchronize: unsafe extern "C" fn(i32) -> Status,
    empty_cache: unsafe extern "C" fn() -> Status,
    graph_begin: unsafe extern "C" fn(i32, *mut *mut c_void) -> Status,
    graph_end: unsafe extern "C" fn(*mut c_void) -> Status,
    graph_replay: unsafe extern "C" fn(*mut c_void) -> Status,
    graph_free: unsafe extern "C" fn(*mut c_void) -> Status,
    library: Library,
}

/// The library, or `None` where no GPU can be used. From then on its kernels serve the GPU's tensors.
///
/// # Errors
/// Where a GPU can be used and the library is missing or does not load.
pub fn load() -> Result<Option<&'static Cuda>, TorchError> {
    static LOADED: OnceLock<Cuda> = OnceLock::new();
    if crate::num_cuda_devices() == 0 {
        return Ok(None);
    }
    if let Some(cuda) = LOADED.get() {
        return Ok(Some(cuda));
    }
    let cuda = Cuda::open()?;
    let multiprocessors = cuda.properties(0)?.multiprocessors;
    use_device_kernels(
        &cuda.library,
        &beside_executable(FILE),
        HINT,
        multiprocessors,
    )?;
    Ok(Some(LOADED.get_or_init(|| cuda)))
}

/// The address of the function that makes NCCL's process groups, for a GPU that can be used.
pub(crate) fn nccl_factory() -> Result<*mut c_void, TorchError> {
    let failed = |message: String| TorchError::Library {
        path: beside_executable(FILE),
        message,
        hint: HINT,
    };
    let cuda = load()?.ok_or_else(|| failed("no GPU can be used".to_owned()))?;
    cuda.library.symbol(c"rlhf_cuda_nccl").map_err(failed)
}

/// CUDA's own words for why no device can be used. `libtorch_cuda.so` must be loaded.
pub(crate) fn why_unavailable() -> String {
    match Cuda::open().and_then(|cuda| cuda.device_count()) {
        Ok(0) => "CUDA finds no device".to_owned(),
        Ok(n) => format!("CUDA finds {n} devices, and torch refuses them"),
        Err(TorchError::Libtorch { message, .. }) => message,
        Err(error) => format!("torch finds no device, and its reason is unknown ({error})"),
    }
}

impl Cuda {
    #[expect(
        clippy::missing_transmute_annotations,
        reason = "the fields' types stand above"
    )]
    fn open() -> Result<Self, TorchError> {
        let path = beside_executable(FILE);
        let library = Library::open(&path, HINT)?;
        let address = |name: &CStr| {
            library.symbol(name).map_err(|message| TorchError::Library {
                path: path.clone(),
                message,
                hint: HINT,
            })
        };
        // SAFETY: each type above is the C signature of the function of that name in `cpp/cuda/runtime.cpp`,
        // and the library is never unloaded.
        unsafe {
            use std::mem::transmute;
            Ok(Self {
                free: transmute::<*mut c_void, _>(address(c"rlhf_cuda_free")?),
                device_count: transmute::<*mut c_void, _>(address(c"rlhf_cuda_device_count")?),
                versions: transmute::<*mut c_void, _>(address(c"rlhf_cuda_versions")?),
                properties: transmute::<*mut c_void, _>(address(c"rlhf_cuda_properties")?),
                memory: transmute::<*mut c_void, _>(address(c"rlhf_cuda_memory")?),
                reset_peak: transmute::<*mut c_void, _>(address(c"rlhf_cuda_reset_peak")?),
                synchronize: transmute::<*mut c_void, _>(address(c"rlhf_cuda_synchronize")?),
                empty_cache: transmute::<*mut c_void, _>(address(c"rlhf_cuda_empty_cache")?),
                graph_begin: transmute::<*mut c_void, _>(address(c"rlhf_cuda_graph_begin")?),
                graph_end: transmute::<*mut c_void, _>(address(c"rlhf_cuda_graph_end")?),
                graph_replay: transmute::<*mut c_void, _>(address(c"rlhf_cuda_graph_replay")?),
                graph_free: transmute::<*mut c_void, _>(address(c"rlhf_cuda_graph_free")?),
                library,
            })
        }
    }

    fn check(&self, operation: &'static str, status: Status) -> Result<(), TorchError> {
        if status.is_null() {
            return Ok(());
        }
        // SAFETY: a status that is not null is a NUL-terminated text that we own.
        let message = unsafe {
            let text = CStr::from_ptr(status).to_string_lossy().into_owned();
            (self.free)(status);
            text
        };
        Err(TorchError::Libtorch {
            operation,
            message: brief(&message),
        })
    }

    /// GPUs that CUDA sees.
    ///
    /// # Errors
    /// CUDA's.
    pub fn device_count(&self) -> Result<usize, TorchError> {
        let mut count = 0;
        // SAFETY: `count` is a valid place.
        self.check("cudaGetDeviceCount", unsafe {
            (self.device_count)(&raw mut count)
        })?;
        Ok(count as usize)
    }

    /// Versions of driver and runtime.
    ///
    /// # Errors
    /// CUDA's.
    pub fn versions(&self) -> Result<Versions, TorchError> {
        let mut versions = Versions {
            driver: 0,
            runtime: 0,
        };
        let Versions { driver, runtime } = &mut versions;
        // SAFETY: both are valid places.
        self.check("cudaRuntimeGetVersion", unsafe {
            (self.versions)(&raw mut *driver, &raw mut *runtime)
        })?;
        Ok(versions)
    }

    /// What device `index` is.
    ///
    /// # Errors
    /// CUDA's, as for an index that does not exist.
    pub fn properties(&self, index: usize) -> Result<Properties, TorchError> {
        let mut raw = RawProperties {
            name: [0; 256],
            major: 0,
            minor: 0,
            multiprocessors: 0,
            total_bytes: 0,
            free_bytes: 0,
        };
        // SAFETY: `raw` is a valid place of the layout that the function fills.
        self.check("cudaGetDeviceProperties", unsafe {
            (self.properties)(index as i32, &raw mut raw)
        })?;
        let name: Vec<u8> = raw
            .name
            .iter()
            .take_while(|c| **c != 0)
            .map(|c| *c as u8)
            .collect();
        Ok(Properties {
            name: String::from_utf8_lossy(&name).into_owned(),
            capability: (raw.major, raw.minor),
            multiprocessors: raw.multiprocessors,
            total_bytes: raw.total_bytes as u64,
            free_bytes: raw.free_bytes as u64,
        })
    }

    /// What libtorch's allocator holds on device `index`.
    ///
    /// # Errors
    /// libtorch's.
    pub fn memory(&self, index: usize) -> Result<Memory, TorchError> {
        let mut memory = Memory::default();
        // SAFETY: `memory` is a valid place of the layout that the function fills.
        self.check("getDeviceStats", unsafe {
            (self.memory)(index as i32, &raw mut memory)
        })?;
        Ok(memory)
    }

    /// The most that living tensors had on device `index`, bytes.
    ///
    /// # Errors
    /// libtorch's.
    pub fn peak_bytes(&self, index: usize) -> Result<u64, TorchError> {
        Ok(self.memory(index)?.peak_bytes as u64)
    }

    /// Starts the peak anew at what is held now.
    ///
    /// # Errors
    /// libtorch's.
    pub fn reset_peak(&self, index: usize) -> Result<(), TorchError> {
        // SAFETY: no pointer is passed.
        self.check("resetPeakStats", unsafe { (self.reset_peak)(index as i32) })
    }

    /// Waits until device `index` has done everything that was asked of it.
    ///
    /// # Errors
    /// CUDA's, also those of work that failed earlier.
    pub fn synchronize(&self, index: usize) -> Result<(), TorchError> {
        // SAFETY: no pointer is passed.
        self.check("cudaDeviceSynchronize", unsafe {
            (self.synchronize)(index as i32)
        })
    }

    /// Records what `body` queues on device `index`, without running it. Where that fails, or `body` panics, work is queued as
    /// before.
    pub(crate) fn record(&self, index: usize, body: impl FnOnce()) -> Result<Recorded, TorchError> {
        let mut graph = std::ptr::null_mut();
        // SAFETY: `graph` is a valid place for one pointer.
        self.check("capture_begin", unsafe {
            (self.graph_begin)(index as i32, &raw mut graph)
        })?;
        let recorded = Recorded(graph);
        body();
        // SAFETY: the graph was begun above.
        self.check("capture_end", unsafe { (self.graph_end)(recorded.0) })?;
        Ok(recorded)
    }

    /// Queues what was recorded.
    pub(crate) fn replay(&self, recorded: &Recorded) -> Result<(), TorchError> {
        // SAFETY: the graph is alive, and was recorded to its end.
        self.check("replay", unsafe { (self.graph_replay)(recorded.0) })
    }

    /// Gives memory that no tensor uses back to the device.
    ///
    /// # Errors
    /// libtorch's.
    pub fn empty_cache(&self) -> Result<(), TorchError> {
        // SAFETY: no pointer is passed.
        self.check("emptyCache", unsafe { (self.empty_cache)() })
    }
}
