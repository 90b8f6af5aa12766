#include "threads.hpp"

#include <unistd.h>

#if defined(__x86_64__) || defined(__i386__)
#include <immintrin.h>
#endif

namespace rwkv {
namespace {

// How long a worker spins for the next job before it sleeps: longer than the gaps between the operations of a step, and short
// enough not to disturb other processes.
constexpr auto SPIN_TIME = std::chrono::microseconds(60);
constexpr size_t CLAIM_PARTS = 4;  // a thread claims 1 / CLAIM_PARTS of the rest of its share
constexpr size_t LINE = 64, LINES_BETWEEN_CHECKS = 8;

inline void relax() {
#if defined(__x86_64__) || defined(__i386__)
    _mm_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

}  // namespace

namespace {

// The register that controls denormals and rounding, the mask of its control bits, and their standard value. The other bits are
// flags.
#if defined(__x86_64__) || defined(__i386__)
using Control = unsigned;
constexpr Control CONTROL = 0xffc0, STANDARD = 0x1f80;
Control control() { return _mm_getcsr(); }
void set_control(Control value) { _mm_setcsr(value); }
#elif defined(__aarch64__)
using Control = uint64_t;
// Traps, FZ16, rounding, FZ, DN, AHP; FIZ, AH and NEP.
constexpr Control CONTROL = 0x7c89f07, STANDARD = 0;
Control control() {
    Control value;
    asm volatile("mrs %0, fpcr" : "=r"(value));
    return value;
}
void set_control(Control value) { asm volatile("msr fpcr, %0" : : "r"(value)); }
#else
using Control = unsigned;
constexpr Control CONTROL = 0, STANDARD = 0;
Control control() { return 0; }
void set_control(Control) {}
#endif

}  // namespace

StandardArithmetic::StandardArithmetic() : before_(control()) {
    if ((before_ & CONTROL) != STANDARD) set_control(STANDARD);
}

StandardArithmetic::~StandardArithmetic() {
    if ((before_ & CONTROL) != STANDARD) set_control(static_cast<Control>(before_));
}

ThreadPool::ThreadPool(size_t num_threads) : lanes_(num_threads), process_(getpid()) {
    for (size_t thread = 1; thread < num_threads; ++thread) workers_.emplace_back([this, thread] { serve(thread); });
}

ThreadPool::~ThreadPool() {
    if (is_of_another_process()) {
        for (std::thread& worker : workers_) worker.detach();
        return;
    }
    stopping_.store(true);
    announce();
    for (std::thread& worker : workers_) worker.join();
}

bool ThreadPool::is_of_another_process() const { return !workers_.empty() && getpid() != process_; }

void ThreadPool::expect(size_t thread, Range range) {
    lanes_[thread].expected.store(range.data, std::memory_order_relaxed);
    lanes_[thread].num_expected.store(range.num_bytes, std::memory_order_relaxed);
}

void ThreadPool::wake() {
    if (!workers_.empty()) announce();
}

bool ThreadPool::claim(size_t thread, size_t& task, size_t& count) {
    for (size_t i = 0; i < lanes_.size(); ++i) {
        std::atomic<uint64_t>& share = lanes_[(thread + i) % lanes_.size()].share;
        uint64_t word = share.load(std::memory_order_acquire);
        while (word >> 32 < static_cast<uint32_t>(word)) {
            const uint64_t first = word >> 32, end = static_cast<uint32_t>(word);
            // An atomic claim waits for the thread's pending memory operations, so a thread claims several tasks of its own share
            // at once.
            count = i == 0 ? (end - first + CLAIM_PARTS - 1) / CLAIM_PARTS : 1;
            const uint64_t unclaimed = i == 0 ? word + (uint64_t(count) << 32) : word - 1;
            if (share.compare_exchange_weak(word, unclaimed, std::memory_order_acq_rel, std::memory_order_acquire)) {
                task = i == 0 ? first : end - 1;
                return true;
            }
        }
    }
    return false;
}

void ThreadPool::work(size_t thread) {
    size_t task, count, done = 0;
    while (claim(thread, task, count)) {
        const Function function = function_.load(std::memory_order_relaxed);
        const void* context = context_.load(std::memory_order_relaxed);
        for (size_t i = 0; i < count; ++i) function(context, task + i, thread);
        done += count;
    }
    // Once per job, since the counter's cache line has to come from another core.
    if (done > 0) unfinished_.fetch_sub(done, std::memory_order_release);
}

void ThreadPool::announce() {
    job_.fetch_add(1, std::memory_order_seq_cst);
    if (sleepers_.load(std::memory_order_seq_cst) > 0) {
        std::lock_guard<std::mutex> lock(mutex_);
        wake_.notify_all();
    }
}

// Wait until `done` returns true, and prefetch the thread's expected range meanwhile. Returns false after `longest`.
template <class Done>
bool ThreadPool::spin(size_t thread, const Done& done, std::chrono::steady_clock::duration longest) {
    const Lane& lane = lanes_[thread];
    const uint8_t* ahead = lane.expected.load(std::memory_order_relaxed);
    const uint8_t* const end = ahead + lane.num_expected.load(std::memory_order_relaxed);
    while (ahead < end) {
        if (done()) return true;
        for (size_t i = 0; i < LINES_BETWEEN_CHECKS; ++i, ahead += LINE) __builtin_prefetch(ahead, 0, 1);
    }
    const auto deadline = std::chrono::steady_clock::now() + longest;
    do {
        for (int i = 0; i < 32; ++i) {
            if (done()) return true;
            relax();
        }
    } while (std::chrono::steady_clock::now() < deadline);
    return false;
}

void ThreadPool::run(size_t num_tasks, Function function, const void* context) {
    if (num_tasks <= 1 || workers_.empty()) {
        for (size_t task = 0; task < num_tasks; ++task) function(context, task, 0);
        return;
    }
    function_.store(function, std::memory_order_relaxed);
    context_.store(context, std::memory_order_relaxed);
    unfinished_.store(num_tasks, std::memory_order_relaxed);
    for (size_t thread = 0; thread < size(); ++thread) {
        const uint64_t first = first_task(thread, num_tasks), end = first_task(thread + 1, num_tasks);
        lanes_[thread].share.store(first << 32 | end, std::memory_order_release);
    }
    announce();
    work(0);
    const auto all_done = [this] { return unfinished_.load(std::memory_order_acquire) == 0; };
    while (!spin(0, all_done, SPIN_TIME)) std::this_thread::yield();
}

void ThreadPool::serve(size_t thread) {
    const StandardArithmetic arithmetic;
    uint64_t seen = 0;
    const auto is_new = [&] { return job_.load(std::memory_order_acquire) != seen; };
    while (!stopping_.load(std::memory_order_relaxed)) {
        if (!spin(thread, is_new, SPIN_TIME)) {
            std::unique_lock<std::mutex> lock(mutex_);
            sleepers_.fetch_add(1, std::memory_order_seq_cst);
            // Sequentially consistent with `announce`, which checks for sleepers after it has counted the job.
            wake_.wait(lock, [&] { return job_.load(std::memory_order_seq_cst) != seen; });
            sleepers_.fetch_sub(1, std::memory_order_relaxed);
        }
        seen = job_.load(std::memory_order_acquire);
        work(thread);
    }
}

}  // namespace rwkv
