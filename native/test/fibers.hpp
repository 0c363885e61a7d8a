// Several callers in one thread, each on a stack of its own: who waits for the simulated network gives the
// others their turn. Which of those that may go on is next is drawn from the seed, so that one seed is one
// order of steps.
//
// Rejected: threads that hand a token round (a hundred times slower), coroutines (the code under test waits in
// plain calls). swapcontext() costs two system calls, a quarter of a microsecond; what it is used for here
// costs ten. The sanitizers are told of each change of stacks.
#pragma once

#include <ucontext.h>

#include <cstddef>
#include <functional>
#include <memory>
#include <utility>
#include <vector>

#include "base/ensure.hpp"
#include "transport/sim.hpp"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif
#if defined(__SANITIZE_THREAD__)
#include <sanitizer/tsan_interface.h>
#endif

namespace drust::test {

class Fibers final : public transport::SimTurns {
 public:
  // Stacks, kept from one use to the next: making them costs more than what runs on them.
  class Stacks {
   public:
    static constexpr std::size_t kBytes = 256 * 1024;
    std::unique_ptr<std::byte[]> take() {
      if (idle_.empty()) return std::unique_ptr<std::byte[]>(new std::byte[kBytes]);
      std::unique_ptr<std::byte[]> stack = std::move(idle_.back());
      idle_.pop_back();
      return stack;
    }
    void give_back(std::unique_ptr<std::byte[]> stack) { idle_.push_back(std::move(stack)); }

   private:
    std::vector<std::unique_ptr<std::byte[]>> idle_;
  };

  Fibers(transport::SimNetwork& network, Stacks& stacks, std::uint64_t seed)
      : network_(network), stacks_(stacks), dice_(seed | 1U) {
    network_.set_turns(this);
  }
  ~Fibers() {
    close();
    ensure(live_ == 0, "every fiber ends before its network");
    for (auto& fiber : fibers_) stacks_.give_back(std::move(fiber->stack));
  }
  Fibers(const Fibers&) = delete;
  Fibers& operator=(const Fibers&) = delete;

  // Runs from the next run() on. May be called by a fiber.
  void start(std::function<void()> body) {
    auto fiber = std::make_unique<Fiber>();
    fiber->body = std::move(body);
    fiber->stack = stacks_.take();
    fiber->fibers = this;
    ensure(::getcontext(&fiber->context) == 0, "a context can be had");
    fiber->context.uc_stack.ss_sp = fiber->stack.get();
    fiber->context.uc_stack.ss_size = Stacks::kBytes;
    fiber->context.uc_link = nullptr;
    const auto whole = reinterpret_cast<std::uintptr_t>(fiber.get());
    ::makecontext(&fiber->context, reinterpret_cast<void (*)()>(&Fibers::enter), 2,
                  static_cast<unsigned>(whole), static_cast<unsigned>(whole >> 32));
#if defined(__SANITIZE_THREAD__)
    fiber->shadow = __tsan_create_fiber(0);
#endif
    ready_.push_back(fiber.get());
    fibers_.push_back(std::move(fiber));
    ++live_;
  }

  // Until every fiber has ended. False if those left wait for what cannot happen.
  bool run() {
    while (live_ > 0) {
      while (!ready_.empty()) {
        const std::size_t chosen = draw(ready_.size());
        Fiber* next = ready_[chosen];
        ready_[chosen] = ready_.back();
        ready_.pop_back();
        resume(*next);
      }
      if (live_ > 0 && !network_.step()) return false;
    }
    return true;
  }

  // Whoever waits from now on lets time pass by himself.
  void close() { network_.set_turns(nullptr); }

  void sleep(transport::SimTime duration_us) {
    const transport::SimTime end_us = network_.now_us() + duration_us;
    while (network_.now_us() < end_us) wait(end_us);
  }

  // When bytes last moved for the fiber that runs.
  [[nodiscard]] transport::SimTime moved_us() const noexcept { return current_->moved_us; }

  // --- SimTurns ---
  void wait(transport::SimTime deadline_us) override {
    Fiber& self = *current_;
    self.deadline_us = deadline_us;
    self.is_waiting = true;
    set_alarm(self);
    leave(self, false);
  }
  void* caller() override { return current_; }
  void moved() override { current_->moved_us = network_.now_us(); }
  void wake(void* caller) override {
    auto* fiber = static_cast<Fiber*>(caller);
    if (!std::exchange(fiber->is_waiting, false)) return;
    ready_.push_back(fiber);
  }
  void ring(void* caller) override {
    auto* fiber = static_cast<Fiber*>(caller);
    if (fiber->alarm_us <= network_.now_us()) fiber->alarm_us = transport::kSimNever;
    if (!fiber->is_waiting) return;
    if (fiber->deadline_us <= network_.now_us()) {
      wake(fiber);
    } else {
      set_alarm(*fiber);
    }
  }

 private:
  struct Fiber {
    ucontext_t context{};
    std::function<void()> body;
    std::unique_ptr<std::byte[]> stack;
    Fibers* fibers = nullptr;
    transport::SimTime deadline_us = 0;
    transport::SimTime alarm_us = transport::kSimNever;  // the next that is set
    transport::SimTime moved_us = 0;
    bool is_waiting = false;
    bool has_ended = false;
    void* shadow = nullptr;  // the sanitizers'
  };

  // One that is set for earlier will ring first, and set the next: most waits end long before their deadline.
  void set_alarm(Fiber& fiber) {
    if (fiber.deadline_us >= fiber.alarm_us) return;
    fiber.alarm_us = fiber.deadline_us;
    network_.alarm(fiber.deadline_us, &fiber);
  }

  static void enter(unsigned low, unsigned high) {
    const std::uintptr_t whole = std::uintptr_t{low} | (std::uintptr_t{high} << 32);
    auto& self = *reinterpret_cast<Fiber*>(whole);
    self.fibers->arrived(nullptr);
    self.body();
    self.body = nullptr;
    self.has_ended = true;
    self.fibers->leave(self, true);
  }

  void resume(Fiber& fiber) {
    current_ = &fiber;
#if defined(__SANITIZE_ADDRESS__)
    void* shadow = nullptr;
    __sanitizer_start_switch_fiber(&shadow, fiber.stack.get(), Stacks::kBytes);
#elif defined(__SANITIZE_THREAD__)
    home_shadow_ = __tsan_get_current_fiber();
    __tsan_switch_to_fiber(fiber.shadow, 0);
#endif
    ensure(::swapcontext(&home_, &fiber.context) == 0, "a fiber can be entered");
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(shadow, nullptr, nullptr);
#endif
    current_ = nullptr;
    if (!fiber.has_ended) return;
    --live_;
#if defined(__SANITIZE_THREAD__)
    __tsan_destroy_fiber(fiber.shadow);
#endif
  }

  void leave(Fiber& self, [[maybe_unused]] bool for_ever) {
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_start_switch_fiber(for_ever ? nullptr : &self.shadow, home_stack_, home_stack_bytes_);
#elif defined(__SANITIZE_THREAD__)
    __tsan_switch_to_fiber(home_shadow_, 0);
#endif
    ensure(::swapcontext(&self.context, &home_) == 0, "a fiber can be left");
    arrived(self.shadow);
  }

  // On a fiber's stack, just now.
  void arrived([[maybe_unused]] void* shadow) {
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(shadow, &home_stack_, &home_stack_bytes_);
#endif
  }

  std::size_t draw(std::size_t bound) noexcept {  // xorshift64
    dice_ ^= dice_ << 13;
    dice_ ^= dice_ >> 7;
    dice_ ^= dice_ << 17;
    return bound == 1 ? 0 : dice_ % bound;
  }

  transport::SimNetwork& network_;
  Stacks& stacks_;
  std::uint64_t dice_;
  ucontext_t home_{};
  const void* home_stack_ = nullptr;
  std::size_t home_stack_bytes_ = 0;
  void* home_shadow_ = nullptr;
  Fiber* current_ = nullptr;
  std::size_t live_ = 0;
  std::vector<Fiber*> ready_;
  std::vector<std::unique_ptr<Fiber>> fibers_;
};

}  // namespace drust::test
