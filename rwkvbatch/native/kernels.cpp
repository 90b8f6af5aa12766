// The kernels of one instruction set. Compiled once for each instruction set, which RWKV_ISA names.
#include "kernels.hpp"

#include "limits.hpp"
#include "linear.hpp"
#include "norm.hpp"
#include "sample.hpp"
#include "sparse.hpp"
#include "wkv7.hpp"

namespace rwkv {
namespace {

#define RWKV_NAME(name) #name
#define RWKV_STRING(name) RWKV_NAME(name)

constexpr Kernels KERNELS = {
    RWKV_STRING(RWKV_ISA), RWKV_ISA::linear, RWKV_ISA::count_nonzero, RWKV_ISA::layer_norm,   RWKV_ISA::embed,  RWKV_ISA::mix,
    RWKV_ISA::token_matrix, RWKV_ISA::wkv7,  RWKV_ISA::activate_all,  RWKV_ISA::sample,       RWKV_ISA::logprob, RWKV_ISA::read,
    RWKV_ISA::multiply_add,
};

}  // namespace

#if defined(RWKV_ISA_AVX512)
const Kernels* avx512_kernels() {
    __builtin_cpu_init();
    const bool is_supported = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                              __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
    return is_supported ? &KERNELS : nullptr;
}
#elif defined(RWKV_ISA_AVX2)
const Kernels* avx2_kernels() {
    __builtin_cpu_init();
    // Every processor with AVX2 and FMA has F16C.
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") ? &KERNELS : nullptr;
}
#elif defined(RWKV_ISA_NEON)
const Kernels* neon_kernels() { return &KERNELS; }  // every 64-bit ARM processor has it
#else
const Kernels* portable_kernels() { return &KERNELS; }
#endif

}  // namespace rwkv
