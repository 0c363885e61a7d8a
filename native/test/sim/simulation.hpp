// Schedules: a cluster and its programs from one seed, run to the end, and its books examined.
#pragma once

#include <algorithm>
#include <cstdio>
#include <string>
#include <vector>

#include "test/sim/owner.hpp"
#include "test/sim/strangers.hpp"
#include "test/sim/worker.hpp"

namespace drust::test {

struct SimReport {
  std::string violation;  // empty: nothing was wrong
  std::uint64_t digest = 0;
  Seen seen;
};

class Simulation {
 public:
  SimReport run(const SimConfig& config) {
    Cluster cluster(config, machines_, stacks_);
    populate(cluster);
    cluster.run();
    machines_.each([&](Machine& machine) { examine(cluster, machine); });

    Seen& seen = cluster.seen;
    seen.schedules = 1;
    seen.resets = cluster.network.tally().resets;
    seen.silences += cluster.network.tally().silences;
    seen.late_segments = cluster.network.tally().late;
    seen.lost_in_body = cluster.notes.lost_in_body;
    seen.repeated_completions = cluster.notes.repeated_completions;
    return {cluster.violation, cluster.network.digest(), seen};
  }

 private:
  static void leave(Cluster& cluster) {
    if (--cluster.clients > 0) return;
    for (const auto& site : cluster.sites()) site->wake();
  }

  static void populate_site(Cluster& cluster, Site& site) {
    cluster.fibers.start([&cluster, &site] { Worker(cluster, site).run(); });
    cluster.fibers.start([&cluster, &site] { keep_house(cluster, site); });
  }

  static void populate(Cluster& cluster) {
    for (ServerId id = 0; id < Cluster::kServers; ++id) populate_site(cluster, cluster.site(id));
    const auto client = [&](auto body) {
      ++cluster.clients;
      cluster.fibers.start([&cluster, body, seed = cluster.dice.next()] {
        body(seed);
        leave(cluster);
      });
    };
    client([&cluster](std::uint64_t seed) { Owner(cluster, cluster.site(0), seed).run(); });
    // On the same server or beside it; the last one may crash, and owns nothing.
    const auto second = static_cast<ServerId>(cluster.dice.below(Cluster::kServers - 1));
    client([&cluster, second](std::uint64_t seed) { Owner(cluster, cluster.site(second), seed).run(); });
    const auto third = static_cast<ServerId>(cluster.dice.below(Cluster::kServers));
    client([&cluster, third](std::uint64_t seed) { pry(cluster, cluster.site(third), seed); });
    if (cluster.is_calm) return;
    client([&cluster](std::uint64_t seed) {
      Faults(cluster, seed, [&cluster](Site& site) { populate_site(cluster, site); }).run();
    });
  }

  // Every byte of a server's heap is accounted for; afterwards it is empty.
  static void examine(Cluster& cluster, Machine& machine) {
    const bool is_current = &cluster.site(machine.server()).machine == &machine;
    for (auto entry = machine.queue->take(0); entry.ok(); entry = machine.queue->take(0)) {
      const auto body = machine.read_body<TaskBody>(entry.value().task);
      if (is_current && !cluster.facts(body.id).is_given_up) cluster.wrong("task %u was left in a queue", body.id);
      machine.queue->finish(entry.value());
      (void)machine.heap->free_shallow(entry.value().task);
    }
    if (is_current && machine.queue->ready() != 0) cluster.wrong("server %u: a queue is not empty", machine.server());
    for (const GlobalPointer& remote : machine.copied) machine.copies->forget(remote);
    machine.copied.clear();
    std::vector<heap::BlockInfo> left;
    machine.partition->each_live_block([&](const heap::BlockInfo& block) { left.push_back(block); });
    for (const heap::BlockInfo& block : left) {
      if (is_current && !is_excused(cluster, machine, block.pointer)) {
        cluster.wrong("server %u: a block of %llu bytes and codec %x was left behind", machine.server(),
                      static_cast<unsigned long long>(block.pointer.extent_bytes), block.codec);
      }
      (void)machine.heap->free_shallow(block.pointer);
    }
    machine.heap->reclaim();
    if (machine.partition->usage().claimed_bytes != 0)
      cluster.wrong("server %u: memory that was never published was left behind", machine.server());
  }

  // What faults leave, by the protocol's own account: each such block is known by name or by its bytes.
  static bool is_excused(Cluster& cluster, const Machine& machine, const GlobalPointer& block) {
    const auto is_it = [&](const GlobalPointer& pointer) {
      return pointer.address == block.address && pointer.colour == block.colour;
    };
    if (cluster.is_calm) return false;
    if (std::any_of(cluster.freed.begin(), cluster.freed.end(),
                    [&](const Cluster::Freed& freed) { return is_it(freed.pointer) && !freed.by->is_up(); })) {
      ++cluster.seen.lost_frees;
      return true;
    }
    for (const TaskFacts& task : cluster.tasks) {
      if (task.is_given_up && std::any_of(task.made.begin(), task.made.end(), is_it)) return true;
    }
    const auto bytes = machine.block(block.address).buffer(0);
    const auto put = std::find_if(
        cluster.unanswered.begin(), cluster.unanswered.end(), [&](const Cluster::Unanswered& unanswered) {
          return unanswered.server == machine.server() && holds(bytes, unanswered.object, unanswered.numbers);
        });
    if (put == cluster.unanswered.end()) return false;
    cluster.unanswered.erase(put);
    ++cluster.seen.lost_blocks;
    return true;
  }

  Machines machines_;
  Fibers::Stacks stacks_;
};

}  // namespace drust::test
