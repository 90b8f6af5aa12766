// `ThreadPool`: a few threads that share the tasks of a job. Each thread first processes its own share of tasks, in order, and then
// steals unclaimed tasks from the ends of other shares, so that a thread that is not scheduled delays only the tasks that it has
// claimed. Results do not depend on which thread processes which task.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

namespace rwkv {

// During its lifetime, its thread keeps denormals and rounds to nearest, since both change the bits of results. The destructor
// restores the thread's settings.
class StandardArithmetic {
public:
    StandardArithmetic();
    ~StandardArithmetic();
    StandardArithmetic(const StandardArithmetic&) = delete;
    StandardArithmetic& operator=(const StandardArithmetic&) = delete;

private:
    uint64_t before_;
};

// A range of memory that a thread will read.
struct Range {
    const uint8_t* data = nullptr;
    size_t num_bytes = 0;
};

class ThreadPool {
public:
    // Starts `num_threads` - 1 workers; the caller of `run` is the other thread.
    explicit ThreadPool(size_t num_threads);
    ~ThreadPool();
    ThreadPool(const ThreadPool&) = delete;
    ThreadPool& operator=(const ThreadPool&) = delete;

    size_t size() const { return lanes_.size(); }

    // Whether this process was forked from the one that started the threads, and so has none of them.
    bool is_of_another_process() const;

    // The first task of a thread's share of `num_tasks` tasks.
    size_t first_task(size_t thread, size_t num_tasks) const { return num_tasks * thread / size(); }

    // Call work(task, thread) for every task below `num_tasks`, and return when all are done.
    template <class Work> void run(size_t num_tasks, const Work& work) {
        run(num_tasks, [](const void* context, size_t task, size_t thread) {
            (*static_cast<const Work*>(context))(task, thread);
        }, &work);
    }

    // Set what `thread` will read first in the job after the next one. It prefetches the range when it is idle. Only speed depends
    // on it.
    void expect(size_t thread, Range range);

    // Wake sleeping workers, since a job is about to come.
    void wake();

private:
    using Function = void (*)(const void*, size_t, size_t);

    struct alignas(64) Lane {
        std::atomic<uint64_t> share{0};  // high half: first unclaimed task, low half: end
        std::atomic<const uint8_t*> expected{nullptr};
        std::atomic<size_t> num_expected{0};
    };

    void run(size_t num_tasks, Function function, const void* context);
    void serve(size_t thread);
    bool claim(size_t thread, size_t& task, size_t& count);
    void work(size_t thread);
    void announce();
    template <class Done> bool spin(size_t thread, const Done& done, std::chrono::steady_clock::duration longest);

    std::vector<Lane> lanes_;
    // Only tasks of the running job can be claimed, and its record does not change until the claimed tasks are done.
    alignas(64) std::atomic<size_t> unfinished_{0};
    alignas(64) std::atomic<Function> function_{nullptr};
    std::atomic<const void*> context_{nullptr};
    std::atomic<uint64_t> job_{0};
    alignas(64) std::atomic<size_t> sleepers_{0};
    std::atomic<bool> stopping_{false};
    std::mutex mutex_;
    std::condition_variable wake_;
    std::vector<std::thread> workers_;
    int process_;
};

}  // namespace rwkv
