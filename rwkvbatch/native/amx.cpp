// The integer kernels with AMX: matrix products for many rows, the kernels of AVX-512 VNNI for fewer.
#include "kernels.hpp"

#if defined(__linux__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include "amx.hpp"

namespace rwkv {
namespace {

void linear(const LinearJob& job, size_t task, float* sums, const uint8_t* next) {
    if (job.num_rows < RWKV_ISA::min_matrix_rows(job.weight.dtype)) return avx512vnni_integer_kernels()->linear(job, task, sums, next);
    if (job.weight.dtype == Dtype::INT4) return RWKV_ISA::matrix_linear<Dtype::INT4>(job, task, sums, next);
    return RWKV_ISA::matrix_linear<Dtype::W8A8>(job, task, sums, next);
}

// Whether the processor has tiles and byte products (AMX-TILE, AMX-INT8), and the system lets this process use them.
bool has_amx() {
#if defined(__linux__)
    constexpr unsigned TILE = 1u << 24, INT8 = 1u << 25;  // of edx in leaf 7
    constexpr long REQUEST = 0x1023, TILE_DATA = 18;                   // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
    unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
    if (__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) == 0 || (edx & TILE) == 0 || (edx & INT8) == 0) return false;
    return syscall(SYS_arch_prctl, REQUEST, TILE_DATA) == 0;
#else
    return false;
#endif
}

}  // namespace

const IntegerKernels* avx512amx_integer_kernels() {
    const IntegerKernels* const vnni = avx512vnni_integer_kernels();
    static const bool is_supported = vnni != nullptr && has_amx();
    static const IntegerKernels KERNELS = {is_supported ? vnni->quantize : nullptr, linear,
                                            is_supported ? vnni->gather : nullptr};
    return is_supported ? &KERNELS : nullptr;
}

}  // namespace rwkv
