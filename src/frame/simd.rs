//! The one place where code for a wider processor is entered.
//!
//! Kernels are safe, portable loops that a compiler turns into vector instructions: compiled three
//! times, for what every processor of the target has, for AVX2 and for AVX-512, and chosen at run
//! time. All give the same bytes (tests).

#![expect(unsafe_code, reason = "a function for AVX2 may only be called where there is AVX2")]

/// What a processor has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Level {
    /// What every processor of the target has.
    Portable,
    /// AVX2 and BMI.
    #[cfg(target_arch = "x86_64")]
    Avx2,
    /// Also AVX-512 with byte permutations: rotates, and narrows without shuffles.
    #[cfg(target_arch = "x86_64")]
    Avx512,
}

impl Level {
    /// All that this processor has, the best one last.
    #[cfg(test)]
    pub(super) fn all() -> Vec<Self> {
        #[cfg(target_arch = "x86_64")]
        let known = vec![Self::Portable, Self::Avx2, Self::Avx512];
        #[cfg(not(target_arch = "x86_64"))]
        let known = vec![Self::Portable];
        known.into_iter().filter(|level| level.is_here()).collect()
    }

    fn is_here(self) -> bool {
        match self {
            Self::Portable => true,
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => {
                is_x86_feature_detected!("avx2")
                    && is_x86_feature_detected!("bmi1")
                    && is_x86_feature_detected!("bmi2")
            }
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => {
                Self::Avx2.is_here()
                    && is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512dq")
                    && is_x86_feature_detected!("avx512vl")
                    && is_x86_feature_detected!("avx512vbmi")
            }
        }
    }
}

/// A loop over plain memory.
pub(super) trait Kernel {
    /// What it gives back.
    type Output;

    /// Gains by AVX-512. Kernels of 2-byte elements do not: they wait for memory, or for the two
    /// ports that 512-bit instructions share where 256-bit ones have three.
    const WIDE: bool;

    /// Has to be `#[inline(always)]`: only what is inlined is compiled for a level.
    fn run(self) -> Self::Output;
}

/// Runs a kernel with the instructions that this processor has.
pub(super) fn run<K: Kernel>(kernel: K) -> K::Output {
    #[cfg(target_arch = "x86_64")]
    for level in [Level::Avx512, Level::Avx2] {
        if (K::WIDE || level != Level::Avx512) && level.is_here() {
            return run_at(level, kernel);
        }
    }
    run_at(Level::Portable, kernel)
}

/// Runs a kernel with the instructions of one level; where the processor lacks them, with those
/// that all have.
pub(super) fn run_at<K: Kernel>(level: Level, kernel: K) -> K::Output {
    match level {
        // SAFETY: the processor has every feature that the function is compiled for; the kernel
        // itself is safe code.
        #[cfg(target_arch = "x86_64")]
        Level::Avx512 if level.is_here() => unsafe { run_avx512(kernel) },
        // SAFETY: as above.
        #[cfg(target_arch = "x86_64")]
        Level::Avx2 if level.is_here() => unsafe { run_avx2(kernel) },
        _ => kernel.run(),
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,bmi1,bmi2")]
fn run_avx2<K: Kernel>(kernel: K) -> K::Output {
    kernel.run()
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,bmi1,bmi2,avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi")]
fn run_avx512<K: Kernel>(kernel: K) -> K::Output {
    kernel.run()
}
