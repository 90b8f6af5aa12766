#include "threads.hpp"

#include <unistd.h>

#include <chrono>

#if defined(__x86_64__) || defined(__i386__)
#include <immintrin.h>
#endif

namespace rwkv {
namespace {

// How long a worker looks for the next job before it sleeps: longer than the gaps between the operations of one
// step, shorter than anything that another process would miss.
constexpr auto SPIN_TIME = std::chrono::microseconds(60);
constexpr int SPINS_BEFORE_YIELD = 2000;

inline void relax() {
#if defined(__x86_64__) || defined(__i386__)
    _mm_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

}  // namespace

#if defined(__x86_64__) || defined(__i386__)
namespace {
constexpr unsigned STANDARD = 0x1f80, CONTROL = 0xffc0;  // of the control and status register; the rest are flags
}

StandardArithmetic::StandardArithmetic() : before_(_mm_getcsr()) {
    if ((before_ & CONTROL) != STANDARD) _mm_setcsr(STANDARD);
}

StandardArithmetic::~StandardArithmetic() {
    if ((before_ & CONTROL) != STANDARD) _mm_setcsr(before_);
}
#else
StandardArithmetic::StandardArithmetic() : before_(0) {}
StandardArithmetic::~StandardArithmetic() {}
#endif

ThreadPool::ThreadPool(size_t num_threads) : process_(getpid()) {
    for (size_t thread = 1; thread < num_threads; ++thread) workers_.emplace_back([this, thread] { serve(thread); });
}

ThreadPool::~ThreadPool() {
    if (getpid() != process_) {  // a forked child has the records of the threads, but not the threads
        for (std::thread& worker : workers_) worker.detach();
        return;
    }
    stopping_.store(true);
    {
        std::lock_guard<std::mutex> lock(mutex_);
        wake_.notify_all();
    }
    for (std::thread& worker : workers_) worker.join();
}

bool ThreadPool::claim(size_t& task) {
    uint64_t open = open_.load(std::memory_order_acquire);
    while (static_cast<uint32_t>(open) != 0) {
        if (open_.compare_exchange_weak(open, open - 1, std::memory_order_acq_rel, std::memory_order_acquire)) {
            task = num_tasks_.load(std::memory_order_relaxed) - static_cast<uint32_t>(open);
            return true;
        }
    }
    return false;
}

void ThreadPool::run(size_t num_tasks, Function function, const void* context) {
    if (num_tasks <= 1 || workers_.empty() || getpid() != process_) {
        for (size_t task = 0; task < num_tasks; ++task) function(context, task, 0);
        return;
    }
    function_.store(function, std::memory_order_relaxed);
    context_.store(context, std::memory_order_relaxed);
    num_tasks_.store(num_tasks, std::memory_order_relaxed);
    unfinished_.store(num_tasks, std::memory_order_relaxed);
    open_.store(++job_ << 32 | num_tasks, std::memory_order_seq_cst);
    if (sleepers_.load(std::memory_order_seq_cst) > 0) {
        std::lock_guard<std::mutex> lock(mutex_);
        wake_.notify_all();
    }
    size_t task;
    while (claim(task)) {
        function(context, task, 0);
        unfinished_.fetch_sub(1, std::memory_order_release);
    }
    for (int spins = 0; unfinished_.load(std::memory_order_acquire) != 0; ++spins) {
        relax();
        if (spins > SPINS_BEFORE_YIELD) std::this_thread::yield();
    }
}

void ThreadPool::serve(size_t thread) {
    const StandardArithmetic arithmetic;
    while (!stopping_.load(std::memory_order_relaxed)) {
        size_t task;
        while (claim(task)) {
            function_.load(std::memory_order_relaxed)(context_.load(std::memory_order_relaxed), task, thread);
            unfinished_.fetch_sub(1, std::memory_order_release);
        }
        const auto deadline = std::chrono::steady_clock::now() + SPIN_TIME;
        bool found = false;
        while (!found && std::chrono::steady_clock::now() < deadline)
            for (int i = 0; i < 32 && !(found = has_work()); ++i) relax();
        if (found) continue;
        std::unique_lock<std::mutex> lock(mutex_);
        sleepers_.fetch_add(1, std::memory_order_seq_cst);
        wake_.wait(lock, [this] { return has_work() || stopping_.load(); });
        sleepers_.fetch_sub(1, std::memory_order_relaxed);
    }
}

}  // namespace rwkv
