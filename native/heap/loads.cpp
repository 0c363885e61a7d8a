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
  const std::uint64_t measured_ms = load.age_ms < now ? now - load.age_ms : 1;  // 0: never
  row.what.write({measured_ms, load.workers, load.idle, load.queued, load.cpu_permille, load.quota_bytes,
                    load.claimed_bytes});
  row.sent.store(load.sent);
}

Load Partition::load(ServerId server) const noexcept {
  Load load;
  load.age_ms = ~0ULL;
  if (server >= kServersPerClusterMax) return load;
  const LoadRow& row = mapping_->load_row(server);
  const auto [measured_ms, workers, idle, queued, cpu_permille, quota_bytes, claimed_bytes] = row.what.read();
  if (measured_ms == 0) return load;
  const std::uint64_t now = now_ms();
  return {.age_ms = now > measured_ms ? now - measured_ms : 0,
          .workers = workers,
          .idle = idle,
          .queued = queued,
          .sent = row.sent.load(),
          .cpu_permille = cpu_permille,
          .quota_bytes = quota_bytes,
          .claimed_bytes = claimed_bytes};
}

void Partition::note_sent(ServerId server, std::uint64_t tasks) noexcept {
  if (server < kServersPerClusterMax) mapping_->load_row(server).sent.fetch_add(tasks, std::memory_order_relaxed);
}

}  // namespace drust::heap
