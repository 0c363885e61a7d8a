#include "server/forks.hpp"

#include <pthread.h>

#include <atomic>

namespace drust::server {
namespace {

std::atomic<std::uint32_t> generation{0};  // written in a new child only, which has one thread

void count_fork() { generation.fetch_add(1, std::memory_order_relaxed); }

const int registered = ::pthread_atfork(nullptr, nullptr, count_fork);

}  // namespace

std::uint32_t fork_generation() noexcept {
  (void)registered;
  return generation.load(std::memory_order_relaxed);
}

}  // namespace drust::server
