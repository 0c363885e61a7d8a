// A simulated cluster for the length of one schedule: its servers, what is known to be true of it, and what
// was seen to be wrong. The programs that run on it: owner.hpp, worker.hpp, strangers.hpp.
#pragma once

#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "base/limits.hpp"
#include "test/frames.hpp"
#include "test/sim/ledger.hpp"
#include "test/sim/site.hpp"

namespace drust::test {

// How often the hard cases occurred.
struct Seen {
  std::uint64_t schedules = 0;
  std::uint64_t calls = 0;
  std::uint64_t resets = 0;
  std::uint64_t lost_in_body = 0;          // a connection lost in the middle of a request's body
  std::uint64_t silences = 0;              // a call or connection that ended by silence
  std::uint64_t late_segments = 0;
  std::uint64_t stale_trailers = 0;        // a read whose block moved on while it was sent
  std::uint64_t stale_refusals = 0;
  std::uint64_t copy_hits = 0;
  std::uint64_t moves = 0;
  std::uint64_t repeated_completions = 0;
  std::uint64_t lost_tasks = 0;
  std::uint64_t late_outcomes = 0;         // a completion that came after its task was given up
  std::uint64_t frees_at_reused_address = 0;
  std::uint64_t lost_frees = 0;            // with the server that was to send them: their blocks stay
  std::uint64_t lost_blocks = 0;           // made by a request whose answer was lost
  std::uint64_t crashes = 0;
  std::uint64_t parts_failed = 0;
};

struct TaskBody {
  static constexpr std::uint32_t kRead = 1, kWrite = 2, kPart = 3;
  std::uint32_t id = 0;
  std::uint32_t kind = 0;
  std::uint32_t object = 0;
  std::uint32_t part = 0;
  Numbers numbers{};
  std::uint32_t new_number = 0;
  std::uint32_t reserved = 0;
  GlobalPointer value;
};

struct CompletionBody {
  std::uint32_t id = 0;
  std::uint32_t code = 0;  // drust::Code
  Numbers numbers{};
  GlobalPointer value;
};

// What the simulation knows of a task, beside what its messages say.
struct TaskFacts {
  std::uint32_t starts = 0;
  bool is_given_up = false;          // its owner counts it as lost: what it reads and makes is nobody's
  std::vector<GlobalPointer> made;   // blocks that only its completion would hand over
  std::uint64_t pending_word = 0;    // of its record, before any outcome
};

struct SimConfig {
  std::uint64_t seed = 1;
  SimBug bug = SimBug::none;
  bool is_traced = false;
  const char* only = nullptr;  // with a bug: count only what is wrong in these words
};

class Cluster {
 public:
  using SimTime = transport::SimTime;
  static constexpr std::uint32_t kServers = Machines::kServers;
  static constexpr SimTime kCallUsMax = 5'000'000;
  static constexpr int kFlushesMax = 50;

  Cluster(const SimConfig& given, Machines& machines, Fibers::Stacks& stacks)
      : config(given),
        dice(given.seed * 0x9e3779b97f4a7c15ULL + 1),
        network(given.seed ^ 0x5eed, kServers),
        fibers(network, stacks, given.seed * 2 + 1),
        machines_(machines) {
    network.set_trace(given.is_traced);
    is_calm = dice.once_in(4);
    transport::SimWeather weather;
    weather.delay_us_max = static_cast<std::uint32_t>(dice.once_in(3) ? 20 : 300);
    weather.segment_bytes_max = static_cast<std::uint32_t>(dice.once_in(3) ? 60 : 3000);
    weather.room_bytes = static_cast<std::uint32_t>(dice.once_in(4) ? 1500 : 65536);
    if (!is_calm && !dice.once_in(3)) weather.resets_once_in = static_cast<std::uint32_t>(1 + dice.below(6));
    network.set_weather(weather);
    notes.reopen = [this](const GlobalPointer& record) {
      const auto found = records.find(record.colour * 64 + record.address.server());
      auto block = site_of(record).machine.partition->find(record.address, record.colour);
      if (found == records.end() || !block.ok()) return;
      reinterpret_cast<tasks::Record*>(block.value().buffer(0).data())->state.word.store(found->second);
    };
    for (ServerId id = 0; id < kServers; ++id) open_site(id, 1);
  }

  // Until all that was started has ended, every server is closed and nothing is on its way.
  void run() {
    if (!fibers.run()) {
      // Fibers that will never go on cannot be taken down either.
      std::fprintf(stderr, "simulation: somebody waits for ever (seed %llu)\n",
                   static_cast<unsigned long long>(config.seed));
      std::abort();
    }
    fibers.close();
    for (int hop = 0; hop < 2; ++hop) {  // a parent's free makes its server send the child's
      for (const auto& site : sites_) {
        int tries = 0;
        while (site->is_up() && !site->peers->flush_frees() && ++tries < kFlushesMax) settle();
        if (tries == kFlushesMax) wrong("server %u: its frees do not arrive", site->id());
      }
      settle();
    }
    for (const auto& site : sites_) site->peers->close();
    settle();
    for (const auto& site : sites_) {
      if (site->connections() != 0) wrong("server %u was left with a connection", site->id());
      site->close();
    }
    if (network.open_ends() != 0) wrong("the end of a connection was left");
  }

  // The server that has this id now.
  [[nodiscard]] Site& site(ServerId id) { return *current_[id]; }
  [[nodiscard]] Site& site_of(const GlobalPointer& pointer) { return site(pointer.address.server()); }
  // The incarnation that its colour names.
  [[nodiscard]] const Site& site_that_made(const GlobalPointer& pointer) const {
    for (const auto& site : sites_) {
      const bool is_it = site->id() == pointer.address.server() &&
                         site->machine.incarnation() == pointer.colour >> (64 - kIncarnationBits);
      if (is_it) return *site;
    }
    ensure(false, "every block was made by some server");
    return *sites_.front();
  }
  // Its memory went with a server.
  [[nodiscard]] bool is_lost(const GlobalPointer& pointer) {
    const Site& now = site_of(pointer);
    return !now.is_up() || pointer.colour >> (64 - kIncarnationBits) != now.machine.incarnation();
  }
  [[nodiscard]] const std::vector<std::unique_ptr<Site>>& sites() const noexcept { return sites_; }

  void open_site(ServerId id, std::uint16_t incarnation) {
    const Site::World world{network, fibers, config.bug, notes};
    sites_.push_back(std::make_unique<Site>(world, machines_.at(id, incarnation), incarnation));
    if (current_.size() <= id) current_.push_back(nullptr);
    current_[id] = sites_.back().get();
    const heap::Endpoint endpoint{incarnation, std::to_string(id), current_[id]->port()};
    for (const auto& site : sites_) site->machine.partition->set_endpoint(id, endpoint);
    for (ServerId other = 0; other < current_.size(); ++other) {
      current_[id]->machine.partition->set_endpoint(
          other, {current_[other]->epoch, std::to_string(other), current_[other]->port()});
    }
  }

  // A call to another server: it must end in time after the last byte that moved for it, and unless this schedule
  // has faults, well.
  template <class Ask>
  auto call(const char* what, Ask ask) {
    const SimTime start_us = network.now_us();
    auto result = ask();
    Status status;
    if constexpr (std::is_same_v<decltype(result), Status>) {
      status = result;
    } else if (!result.ok()) {
      status = result.status();
    }
    ++seen.calls;
    network.digest(static_cast<std::uint64_t>(status.code()));
    say("%s: %s", what, status.ok() ? "ok" : status.detail().c_str());
    const SimTime silence_us = network.now_us() - std::max(start_us, fibers.moved_us());
    if (silence_us >= kCallUsMax) wrong("%s took longer than a lost server may", what);
    if (status.code() == Code::stale) {
      ++(status.detail().find("while it was read") != std::string::npos ? seen.stale_trailers
                                                                        : seen.stale_refusals);
    }
    const bool is_silence = status.detail().find("silent") != std::string::npos ||
                            status.detail().find("no answer") != std::string::npos;
    if (is_silence) ++seen.silences;
    if (is_calm && status.code() == Code::server_lost) wrong("%s lost a server that nothing happened to", what);
    const bool is_expected = status.ok() || status.code() == Code::server_lost || status.code() == Code::stale ||
                             status.code() == Code::not_found || status.code() == Code::closed;
    if (!is_expected) wrong("%s: %s", what, status.detail().c_str());
    return result;
  }

  // The first thing that was wrong is the one to look at.
  __attribute__((format(printf, 2, 3))) void wrong(const char* format, ...) {
    va_list arguments;
    va_start(arguments, format);
    const std::string text = format_text(format, arguments);
    va_end(arguments);
    const bool counts = config.only == nullptr || text.find(config.only) != std::string::npos;
    if (violation.empty() && counts) violation = text;
    if (config.is_traced) std::fprintf(stderr, "%10llu us  WRONG: %s\n", now_for_print(), text.c_str());
  }
  __attribute__((format(printf, 2, 3))) void say(const char* format, ...) {
    if (!config.is_traced) return;
    va_list arguments;
    va_start(arguments, format);
    const std::string text = format_text(format, arguments);
    va_end(arguments);
    std::fprintf(stderr, "%10llu us  %s\n", now_for_print(), text.c_str());
  }

  TaskFacts& facts(std::uint32_t task) {
    if (tasks.size() <= task) tasks.resize(task + 1U);
    return tasks[task];
  }
  std::uint32_t next_number() noexcept { return ++numbers_; }

  const SimConfig config;
  Dice dice;
  transport::SimNetwork network;
  Fibers fibers;
  Inspector::Notes notes;
  bool is_calm = false;
  Ledger ledger;
  std::vector<TaskFacts> tasks;
  std::unordered_map<std::uint64_t, std::uint64_t> records;  // what reopen() puts back
  struct Freed {
    GlobalPointer pointer;
    bool is_shallow;
    const Site* by;
  };
  std::vector<Freed> freed;  // by messages to other servers
  struct Unanswered {
    ServerId server;
    std::uint32_t object;
    Numbers numbers;
  };
  std::vector<Unanswered> unanswered;  // puts that may have left a block there
  std::uint32_t clients = 0;           // owners, strangers and faults: the rest serves them
  std::uint32_t objects = 0;
  std::uint32_t last_task = 0;
  Seen seen;
  std::string violation;

 private:
  void settle() {
    while (network.step()) {
    }
  }
  static std::string format_text(const char* format, va_list arguments) {
    char text[400];
    std::vsnprintf(text, sizeof text, format, arguments);
    return text;
  }
  [[nodiscard]] unsigned long long now_for_print() const noexcept { return network.now_us(); }

  Machines& machines_;
  std::vector<std::unique_ptr<Site>> sites_;
  std::vector<Site*> current_;  // by id
  std::uint32_t numbers_ = 0;
};

}  // namespace drust::test
