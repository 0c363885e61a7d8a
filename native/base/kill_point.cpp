// What happens at a kill point of a process that maps a board. Nothing here runs outside of tests.
#include "base/kill_point.hpp"

#include <csignal>
#include <cstdlib>
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/ensure.hpp"

namespace drust {

std::atomic<KillBoard*> kill_board{nullptr};

namespace {

constexpr int kExitStatus = 86;  // tells a death by `exit` from every other

// Threads that take no signals would wait for it for ever.
void unblock(int number) noexcept {
  sigset_t only;
  ::sigemptyset(&only);
  ::sigaddset(&only, number);
  ::pthread_sigmask(SIG_UNBLOCK, &only, nullptr);
}

void act(KillAction action) noexcept {
  switch (action) {
    case KillAction::none: return;
    case KillAction::kill: ::kill(::getpid(), SIGKILL); break;
    case KillAction::stop: ::kill(::getpid(), SIGSTOP); return;  // goes on when somebody continues it
    case KillAction::exit: ::_exit(kExitStatus);
    case KillAction::segfault:
      unblock(SIGSEGV);
      std::signal(SIGSEGV, SIG_DFL);  // whoever handles it (a sanitizer, a fault handler) would end it its own way
      std::raise(SIGSEGV);
      break;
    case KillAction::abort: std::abort();
  }
  while (true) ::pause();  // a signal to oneself may need a moment to arrive
}

KillBoard* map_board(int descriptor, int flags) noexcept {
  void* mapped = ::mmap(nullptr, sizeof(KillBoard), PROT_READ | PROT_WRITE, flags, descriptor, 0);
  return mapped == MAP_FAILED ? nullptr : static_cast<KillBoard*>(mapped);
}

}  // namespace

void pass_kill_point(KillBoard& board, std::uint32_t point) noexcept {
  board.passed[point].fetch_add(1, std::memory_order_relaxed);
  const auto self = static_cast<std::uint32_t>(::getpid());
  for (KillRow& row : board.rows) {
    if (row.pid.load(std::memory_order_acquire) != self) continue;
    const std::uint32_t wanted = row.point.load(std::memory_order_relaxed);
    if (wanted != kAnyKillPoint && wanted != point) continue;
    if (row.fired.load(std::memory_order_relaxed) != 0 || row.left.fetch_sub(1) != 1) continue;
    row.fired.store(point + 1);
    act(static_cast<KillAction>(row.action.load()));
  }
}

Status map_kill_board() noexcept {
  const char* path = std::getenv("DRUST_KILL_BOARD");
  if (path == nullptr || *path == '\0' || kill_board.load() != nullptr) return {};
  const int descriptor = ::open(path, O_RDWR | O_CLOEXEC);
  if (descriptor < 0) return system_error("open");
  KillBoard* board = map_board(descriptor, MAP_SHARED);
  ::close(descriptor);
  if (board == nullptr) return system_error("mmap");
  kill_board.store(board);
  return {};
}

void arm_kill_point(std::uint32_t point, std::uint32_t nth, KillAction action) noexcept {
  KillBoard* board = kill_board.load();
  if (board == nullptr) {
    board = map_board(-1, MAP_SHARED | MAP_ANONYMOUS);
    ensure(board != nullptr, "no memory for a kill board");
    kill_board.store(board);
  }
  for (KillRow& row : board->rows) {
    if (row.pid.load() != 0) continue;
    row.point.store(point);
    row.left.store(nth);
    row.action.store(static_cast<std::uint32_t>(action));
    row.fired.store(0);
    row.pid.store(static_cast<std::uint32_t>(::getpid()), std::memory_order_release);
    return;
  }
  ensure(false, "every row of the kill board is taken");
}

}  // namespace drust
