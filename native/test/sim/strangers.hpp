// Who else talks to the servers of a simulated cluster: readers that have no right to what they ask for, and the
// faults.
#pragma once

#include "test/sim/access.hpp"

namespace drust::test {

// Asks for versions that somebody was told of once, living or not. Each answer is that version or none.
inline void pry(Cluster& cluster, Site& site, std::uint64_t seed) {
  Dice dice(seed);
  for (std::uint64_t left = 2 + dice.below(8); left > 0 && site.is_up(); --left) {
    cluster.fibers.sleep(dice.below(4000));
    const auto& told = cluster.ledger.told();
    if (told.empty()) continue;
    // The latest are the most likely to go while they are read.
    const std::size_t back = dice.below(std::min<std::size_t>(told.size(), dice.once_in(3) ? told.size() : 3));
    const GlobalPointer pointer = told[told.size() - 1 - back];
    if (site.is_here(pointer)) continue;
    if (dice.once_in(6)) {  // a free of what never was
      GlobalPointer wrong = pointer;
      wrong.colour += 1'000'000 + dice.below(1000);
      site.free_later(wrong);
      continue;
    }
    const auto local = cluster.call("a stranger's read_block", [&] { return site.peers->read_block(pointer); });
    if (!local.ok()) continue;
    const auto found = site.machine.partition->find(local.value().address, local.value().colour);
    const Version* version = cluster.ledger.find(pointer);
    if (version != nullptr && !version->is_dirty && found.ok() &&
        !holds(found.value().buffer(0), version->object, version->numbers)) {
      cluster.wrong("object %u: a read was answered with bytes of another version", version->object);
    }
    (void)site.machine.heap->free_shallow(local.value());
  }
}

// Cuts, deaf links and a crash, at drawn times.
class Faults {
 public:
  Faults(Cluster& cluster, std::uint64_t seed, std::function<void(Site&)> populate)
      : c_(cluster), dice_(seed), populate_(std::move(populate)) {}

  void run() {
    for (std::uint64_t left = dice_.below(4); left > 0; --left) {
      c_.fibers.sleep(dice_.below(6000));
      const auto from = static_cast<std::uint32_t>(dice_.below(Cluster::kServers));
      const auto to = static_cast<std::uint32_t>((from + 1 + dice_.below(Cluster::kServers - 1)) % Cluster::kServers);
      const std::uint64_t length_us = dice_.once_in(3) ? dice_.below(9'000'000) : dice_.below(30'000);
      switch (dice_.below(4)) {
        case 0:
          c_.say("servers %u and %u are cut off from each other", from, to);
          c_.network.deafen(from, to, c_.network.now_us() + length_us);
          c_.network.deafen(to, from, c_.network.now_us() + length_us);
          break;
        case 1:
          c_.say("server %u no longer hears server %u", to, from);
          c_.network.deafen(from, to, c_.network.now_us() + length_us);
          break;
        case 2: crash(); break;
        default: break;
      }
    }
  }

 private:
  // Once, of the server that owns nothing.
  void crash() {
    if (std::exchange(has_crashed_, true)) return;
    constexpr ServerId kId = Cluster::kServers - 1;
    const bool is_silent = dice_.once_in(2);
    c_.say("server %u crashes", kId);
    ++c_.seen.crashes;
    c_.site(kId).crash(is_silent);
    c_.fibers.sleep(dice_.below(dice_.once_in(2) ? 6'000'000 : 20'000));
    c_.network.restart(kId);
    c_.open_site(kId, 2);
    populate_(c_.site(kId));
  }

  Cluster& c_;
  Dice dice_;
  std::function<void(Site&)> populate_;
  bool has_crashed_ = false;
};

}  // namespace drust::test
