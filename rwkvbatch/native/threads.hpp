// A few threads that share the tasks of one job. Tasks are claimed one by one, so a thread that the machine has taken
// away delays only the task it is in; who does which task never matters to a result.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

namespace rwkv {

// While one lives, its thread keeps denormals and rounds to nearest, whatever the thread was set to: both are part of
// the bits.
class StandardArithmetic {
public:
    StandardArithmetic();
    ~StandardArithmetic();
    StandardArithmetic(const StandardArithmetic&) = delete;
    StandardArithmetic& operator=(const StandardArithmetic&) = delete;

private:
    unsigned before_;
};

class ThreadPool {
public:
    // Of `num_threads`, one is the caller of `run`.
    explicit ThreadPool(size_t num_threads);
    ~ThreadPool();
    ThreadPool(const ThreadPool&) = delete;
    ThreadPool& operator=(const ThreadPool&) = delete;

    size_t size() const { return workers_.size() + 1; }

    // Call work(task, thread) for every task below `num_tasks`, and return when all are done.
    template <class Work> void run(size_t num_tasks, const Work& work) {
        run(num_tasks, [](const void* context, size_t task, size_t thread) {
            (*static_cast<const Work*>(context))(task, thread);
        }, &work);
    }

private:
    using Function = void (*)(const void*, size_t, size_t);

    void run(size_t num_tasks, Function function, const void* context);
    void serve(size_t thread);
    bool claim(size_t& task);
    bool has_work() const { return static_cast<uint32_t>(open_.load(std::memory_order_acquire)) != 0; }

    // The job's number above, the number of its unclaimed tasks below: one word, so that a claim can only be of the
    // job that is running, whose record then stands still until the claimed task is done.
    alignas(64) std::atomic<uint64_t> open_{0};
    alignas(64) std::atomic<size_t> unfinished_{0};
    alignas(64) std::atomic<Function> function_{nullptr};
    std::atomic<const void*> context_{nullptr};
    std::atomic<size_t> num_tasks_{0};
    alignas(64) std::atomic<size_t> sleepers_{0};
    std::atomic<bool> stopping_{false};
    std::mutex mutex_;
    std::condition_variable wake_;
    std::vector<std::thread> workers_;
    uint64_t job_ = 0;
    int process_;
};

}  // namespace rwkv
