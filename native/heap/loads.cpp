// How busy each server is, as its own server measured it a moment ago and told all others (src/drust/server/load.py).
//
// Whoever spawns reads this table and sends no message. What it says is old by up to two periods, so a burst of tasks
// would all go to the server that was idle when it was last asked: therefore each row counts the tasks that processes
// of this host have sent there since it was written, and readers add them to those that wait.
// A row's age is kept as the moment of its measurement on this host's clock, so nobody has to write anything for a row
// of a lost server to grow old. Rejected: a flag for "lost" (a second copy of what the endpoint table says, and a
// server that is cut off is not known to be lost for seconds).
#include <chrono>

#include "base/ensure.hpp"
#include "heap/mapping.hpp"

namespace drust::heap {
namespace {

std::uint64_t now_ms() noexcept {
  const auto now = std::chrono::steady_clock::now().time_since_epoch();  // one clock for all processes of a host
  return static_cast<std::uint64_t>(std::chrono::duration_cast<std::chrono::milliseconds>(now).count());
}

}  // namespace

void Partition::set_load(ServerId server, const Load& load) noexcept {
  ensure(server < kServersPerClusterMax, "a load of a server beyond kServersPerClusterMax");
  LoadRow& row = mapping_->load_row(server);
  const std::uint64_t now = now_ms();
  const std::uint64_t sequence = row.sequence.load() | 1;
  row.sequence.store(sequence);
  row.measured_ms.store(load.age_ms < now ? now - load.age_ms : 1);
  row.workers.store(load.workers);
  row.idle.store(load.idle);
  row.queued.store(load.queued);
  row.cpu_permille.store(load.cpu_permille);
  row.quota_bytes.store(load.quota_bytes);
  row.claimed_bytes.store(load.claimed_bytes);
  row.sent.store(load.sent);
  row.sequence.store(sequence + 1);
}

Load Partition::load(ServerId server) const noexcept {
  Load never;
  never.age_ms = ~0ULL;
  if (server >= kServersPerClusterMax) return never;
  const LoadRow& row = mapping_->load_row(server);
  for (int attempt = 0; attempt < 1'000'000; ++attempt) {  // ends even if the writer was killed in the middle
    const std::uint64_t before = row.sequence.load();
    const std::uint64_t measured = row.measured_ms.load();
    Load load;
    load.workers = row.workers.load();
    load.idle = row.idle.load();
    load.queued = row.queued.load();
    load.cpu_permille = row.cpu_permille.load();
    load.quota_bytes = row.quota_bytes.load();
    load.claimed_bytes = row.claimed_bytes.load();
    load.sent = row.sent.load();
    if (before % 2 != 0 || row.sequence.load() != before) continue;
    if (measured == 0) break;
    const std::uint64_t now = now_ms();
    load.age_ms = now > measured ? now - measured : 0;
    return load;
  }
  return never;
}

void Partition::note_sent(ServerId server, std::uint64_t tasks) noexcept {
  if (server < kServersPerClusterMax) mapping_->load_row(server).sent.fetch_add(tasks, std::memory_order_relaxed);
}

}  // namespace drust::heap
