// A few threads that share the tasks of one job. Each begins with its own share of them, in order, and then takes over
// what others have not begun, from their ends: a thread that the machine has taken away delays only what it has claimed.
// Who does which task never matters to a result.
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

// While one lives, its thread keeps denormals and rounds to nearest, whatever the thread was set to: both are part of
// the bits.
class StandardArithmetic {
public:
    StandardArithmetic();
    ~StandardArithmetic();
    StandardArithmetic(const StandardArithmetic&) = delete;
    StandardArithmetic& operator=(const StandardArithmetic&) = delete;

private:
    uint64_t before_;
};

// Memory that a thread will read.
struct Range {
    const uint8_t* data = nullptr;
    size_t num_bytes = 0;
};

class ThreadPool {
public:
    // Of `num_threads`, one is the caller of `run`.
    explicit ThreadPool(size_t num_threads);
    ~ThreadPool();
    ThreadPool(const ThreadPool&) = delete;
    ThreadPool& operator=(const ThreadPool&) = delete;

    size_t size() const { return lanes_.size(); }

    // Whether this process is a fork of the one that started the threads, and so has none of them.
    bool is_of_another_process() const;

    // Where the share of a thread begins, out of `num_tasks`.
    size_t first_task(size_t thread, size_t num_tasks) const { return num_tasks * thread / size(); }

    // Call work(task, thread) for every task below `num_tasks`, and return when all are done.
    template <class Work> void run(size_t num_tasks, const Work& work) {
        run(num_tasks, [](const void* context, size_t task, size_t thread) {
            (*static_cast<const Work*>(context))(task, thread);
        }, &work);
    }

    // What `thread` will read first in the job after the next one: it fetches that into its cache once it has nothing
    // else to do. Nothing but speed depends on it.
    void expect(size_t thread, Range range);

    // Have sleeping workers look out for a job that is about to come.
    void wake();

private:
    using Function = void (*)(const void*, size_t, size_t);

    struct alignas(64) Lane {
        std::atomic<uint64_t> share{0};  // the first unclaimed task above, the end below
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
    // A claim can only be of the job that is running, whose record then stands still until the claimed task is done.
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
