// Who is in the partition, what each has counted, and where other servers are.
#include <algorithm>
#include <bit>
#include <chrono>
#include <cstring>
#include <string>

#include "base/ensure.hpp"
#include "base/futex.hpp"
#include "base/small_file.hpp"
#include "heap/mapping.hpp"

namespace drust::heap {
namespace {

// Field 22 of /proc/<pid>/stat, counted behind the command's name, which may hold blanks and brackets. 0: not
// known.
std::uint64_t start_time_of(std::uint32_t pid) {
  if (pid == 0) return 0;
  const std::string line = text_of("/proc/" + std::to_string(pid) + "/stat");
  std::size_t at = line.rfind(')');
  for (int field = 2; field < 22 && at != std::string::npos; ++field) at = line.find(' ', at + 1);
  return at == std::string::npos ? 0 : std::strtoull(line.c_str() + at, nullptr, 10);
}

static_assert(std::endian::native == std::endian::little, "the futex is the low half of the sequence");
const std::atomic<std::uint32_t>& futex_of(const SharedWord& sequence) noexcept {
  const void* low_half = &sequence;  // its address is all the kernel needs
  return *static_cast<const std::atomic<std::uint32_t>*>(low_half);
}

// A server's number as a word of an endpoint row holds it.
ServerId server_in(std::uint64_t word) noexcept {
  return word == 0 ? kNoServer : static_cast<ServerId>(word - 1);
}

std::uint64_t word_of(ServerId server) noexcept { return server == kNoServer ? 0 : std::uint64_t{server} + 1; }

constexpr std::size_t kHostAt = 4;  // of an endpoint row's words
constexpr std::size_t kHostBytesMax = 63;

}  // namespace

Result<ProcessId> Partition::claim_process(ProcessKind kind, std::uint32_t pid) {
  if (kind == ProcessKind::none) return Status(Code::bad_request, "a process needs a kind");
  const std::uint32_t first = mapping_->shared().next_slot.fetch_add(1, std::memory_order_relaxed);
  for (std::uint32_t step = 0; step < kProcessesMax; ++step) {
    const std::uint32_t index = (first + step) % kProcessesMax;
    ProcessSlot& slot = mapping_->slot(index);
    std::uint64_t seen = slot.word.load();
    if (slot_phase(seen) != Phase::free) continue;
    const std::uint32_t generation = std::max(1U, (slot_generation(seen) + 1) & 0xffffffU);
    if (!slot.word.compare_exchange_strong(seen, slot_word(pid, generation, kind, Phase::live))) continue;
    slot.start_time.store(start_time_of(pid));
    return ProcessId{index, generation};
  }
  return Status(Code::full,
                "all " + std::to_string(kProcessesMax) + " process slots of this server are taken");
}

void Partition::declare_dead(ProcessId process) noexcept {
  ensure(process.slot < kProcessesMax, "a process slot out of range");
  std::uint64_t seen = mapping_->slot(process.slot).word.load();
  if (slot_generation(seen) != process.generation || slot_phase(seen) != Phase::live) return;
  mapping_->slot(process.slot)
      .word.compare_exchange_strong(
          seen, slot_word(slot_pid(seen), process.generation, slot_kind(seen), Phase::dead));
}

void Partition::release_process(ProcessId process) noexcept {
  ensure(process.slot < kProcessesMax, "a process slot out of range");
  ProcessSlot& slot = mapping_->slot(process.slot);
  const std::uint64_t seen = slot.word.load();
  if (slot_generation(seen) != process.generation || slot_phase(seen) == Phase::free) return;
  CounterRow& row = mapping_->counters(process.slot);
  for (std::uint32_t index = 0; index < kCounters; ++index) row.before[index].store(row.total[index].load());
  slot.start_time.store(0);
  slot.remote_frees.store(0);
  slot.word.store(slot_word(0, process.generation, ProcessKind::none, Phase::free));
}

bool Partition::is_alive(ProcessId process) const noexcept {
  if (process.slot >= kProcessesMax) return false;
  const std::uint64_t seen = mapping_->slot(process.slot).word.load();
  return slot_phase(seen) == Phase::live && slot_generation(seen) == process.generation;
}

bool Partition::is_reapable(ProcessId process) const noexcept {
  if (process.slot >= kProcessesMax) return false;
  const std::uint64_t seen = mapping_->slot(process.slot).word.load();
  return slot_phase(seen) != Phase::live && slot_generation(seen) == process.generation;
}

std::vector<ProcessInfo> Partition::processes() const {
  std::vector<ProcessInfo> all;
  for (std::uint32_t index = 0; index < kProcessesMax; ++index) {
    const std::uint64_t seen = mapping_->slot(index).word.load();
    if (slot_phase(seen) != Phase::live) continue;
    ProcessInfo& info = all.emplace_back();
    info.id = {index, slot_generation(seen)};
    info.kind = slot_kind(seen);
    info.pid = slot_pid(seen);
    info.start_time = mapping_->slot(index).start_time.load();
    const CounterRow& row = mapping_->counters(index);
    for (std::uint32_t counter = 0; counter < kCounters; ++counter) {
      info.counters[counter] =
          row.total[counter].load(std::memory_order_relaxed) - row.before[counter].load();
    }
  }
  return all;
}

void Partition::count(ProcessId process, Counter counter, std::uint64_t amount) const noexcept {
  ensure(process.slot < kProcessesMax && counter < Counter::count_, "a counter out of range");
  mapping_->counters(process.slot)
      .total[static_cast<std::uint32_t>(counter)]
      .fetch_add(amount, std::memory_order_relaxed);
}

std::vector<std::uint64_t> Partition::counters() const {
  std::vector<std::uint64_t> sums(kCounters, 0);
  for (std::uint32_t index = 0; index < kProcessesMax; ++index) {
    const CounterRow& row = mapping_->counters(index);
    for (std::uint32_t counter = 0; counter < kCounters; ++counter) {
      sums[counter] += row.total[counter].load(std::memory_order_relaxed);
    }
  }
  return sums;
}

void Partition::set_endpoint(ServerId server, const Endpoint& endpoint) noexcept {
  EndpointRow* row = nullptr;
  for (std::uint32_t index = 0; index < kServersPerClusterMax && row == nullptr; ++index) {
    const std::uint64_t held = mapping_->endpoint_row(index).server.load();
    if (held == word_of(server) || held == 0) row = &mapping_->endpoint_row(index);
  }
  ensure(row != nullptr, "more servers than kServersPerClusterMax");
  decltype(row->what)::Words words = {endpoint.epoch, endpoint.port, word_of(endpoint.by), word_of(endpoint.backup)};
  std::memcpy(&words[kHostAt], endpoint.host.data(), std::min(endpoint.host.size(), kHostBytesMax));
  row->what.write(words);
  row->server.store(word_of(server));
  futex_wake(futex_of(row->what.sequence()), kEverybody);
}

bool Partition::await_endpoint(ServerId server, const Endpoint& seen, Deadline deadline) const {
  const EndpointRow* row = nullptr;
  for (std::uint32_t index = 0; index < kServersPerClusterMax && row == nullptr; ++index) {
    if (mapping_->endpoint_row(index).server.load() == word_of(server)) row = &mapping_->endpoint_row(index);
  }
  if (row == nullptr) return false;
  for (;;) {
    const auto sequence = static_cast<std::uint32_t>(row->what.sequence().load());  // before the row: none is missed
    if (endpoint(server) != seen) return true;
    const Deadline now = std::chrono::steady_clock::now();
    if (is_closed() || now >= deadline) return false;
    static_cast<void>(futex_wait(futex_of(row->what.sequence()), sequence,
                                 std::min(deadline, now + std::chrono::milliseconds(kWaitSliceMs))));
  }
}

std::vector<ServerId> Partition::servers() const {
  std::vector<ServerId> all;
  for (std::uint32_t index = 0; index < kServersPerClusterMax; ++index) {
    const ServerId server = server_in(mapping_->endpoint_row(index).server.load());
    if (server == kNoServer) break;
    all.push_back(server);
  }
  return all;
}

Endpoint Partition::endpoint(ServerId server) const {
  for (std::uint32_t index = 0; index < kServersPerClusterMax; ++index) {
    const EndpointRow& row = mapping_->endpoint_row(index);
    const std::uint64_t held = row.server.load();
    if (held == 0) break;
    if (held != word_of(server)) continue;
    const auto words = row.what.read();
    char host[kHostBytesMax] = {};
    std::memcpy(host, &words[kHostAt], sizeof host);
    return {words[0], std::string(host, ::strnlen(host, sizeof host)), static_cast<std::uint16_t>(words[1]),
            server_in(words[2]), server_in(words[3])};
  }
  return {};
}

}  // namespace drust::heap
