// _core.ServerPlane: a server's native half, as its Python control plane drives it.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>

#include "bind/loads.hpp"
#include "bind/pointer.hpp"
#include "bind/runtime.hpp"
#include "heap/shared.hpp"
#include "server/reaper.hpp"
#include "server/serve.hpp"
#include "server/takeovers.hpp"
#include "server/unnamed.hpp"

namespace drust::bind {

nb::dict counters_dict(const heap::Partition& partition);
nb::dict usage_dict(const heap::Partition& partition);
nb::list largest_list(const heap::Partition& partition, std::size_t most);
nb::list processes_list(const heap::Partition& partition);
nb::object find_wait(const heap::Partition& partition, std::uint64_t who, std::uint64_t token);

namespace {

struct Plane {
  Runtime runtime;
  std::unique_ptr<server::Reaper> reaper;
  std::unique_ptr<server::Takeovers> takeovers;
  std::unique_ptr<server::Unnamed> unnamed;
  std::unique_ptr<server::Server> server;
};

Result<std::unique_ptr<Plane>> start(const heap::CreateOptions& partition, server::ServeOptions serve, std::uint32_t pid) {
  auto created = heap::Partition::create(partition);
  if (!created.ok()) return created.status();
  auto plane = std::make_unique<Plane>();
  Runtime& runtime = plane->runtime;
  runtime.partition = std::move(created.value());
  auto process = runtime.partition->claim_process(heap::ProcessKind::server, pid);
  if (!process.ok()) return process.status();
  runtime.process = process.value();
  runtime.heap = std::make_unique<heap::Heap>(*runtime.partition, runtime.process);
  runtime.copies = std::make_unique<cache::Copies>(*runtime.heap);
  runtime.queue = std::make_unique<tasks::Queue>(*runtime.heap);
  runtime.peers = std::make_unique<server::Peers>(*runtime.heap, server::PeersOptions{.token = serve.token, .counts_questions = false});
  runtime.heap->set_pressure_hook(
      [copies = runtime.copies.get()](std::uint64_t bytes) { return copies->evict(bytes); });
  plane->reaper = std::make_unique<server::Reaper>(*runtime.heap, *runtime.queue, *runtime.copies, *runtime.peers);
  plane->takeovers = std::make_unique<server::Takeovers>(*runtime.heap, *runtime.queue, *runtime.peers);
  plane->unnamed = std::make_unique<server::Unnamed>(*runtime.heap, *runtime.queue, *runtime.peers);
  auto server = server::Server::start(*runtime.heap, *runtime.queue, *runtime.peers, std::move(serve));
  if (!server.ok()) return server.status();
  plane->server = std::move(server.value());
  return plane;
}

Plane* create(ServerId server, std::uint16_t incarnation, std::uint64_t heap_bytes, const std::string& host,
              std::uint16_t port, std::uint32_t threads, nb::bytes token, nb::object log, std::uint32_t pid,
              bool replicates_all) {
  server::ServeOptions serve{.host = host, .port = port, .threads = threads, .token = {}, .log = {}};
  const auto* secret = reinterpret_cast<const std::byte*>(token.c_str());
  serve.token.assign(secret, secret + token.size());
  if (!log.is_none()) {
    // Kept for the life of the process: serve threads may call it until the very end.
    PyObject* callable = log.release().ptr();
    serve.log = [callable](const std::string& line) {
      nb::gil_scoped_acquire locked;
      PyObject* result = PyObject_CallFunction(callable, "s", line.c_str());
      if (result == nullptr) PyErr_WriteUnraisable(callable);
      Py_XDECREF(result);
    };
  }
  Result<std::unique_ptr<Plane>> plane = [&] {
    nb::gil_scoped_release unlocked;
    return start({.server = server,
                  .incarnation = incarnation,
                  .heap_bytes = heap_bytes,
                  .replicates_all = replicates_all},
                 std::move(serve), pid);
  }();
  return unwrap(std::move(plane)).release();
}

nb::object take_control(Plane& plane, std::uint32_t timeout_ms) {
  Result<server::ControlRequest> request = [&] {
    nb::gil_scoped_release unlocked;
    return plane.server->take_control(timeout_ms);
  }();
  if (!request.ok()) {
    const Code code = request.status().code();
    if (code == Code::timed_out || code == Code::closed) return nb::none();
    raise(request.status());
  }
  return nb::make_tuple(request.value().id, nb::bytes(request.value().body.data(), request.value().body.size()));
}

void reply_control(Plane& plane, std::uint64_t id, nb::bytes body) {
  const auto* first = reinterpret_cast<const std::byte*>(body.c_str());
  plane.server->reply_control(id, {first, first + body.size()});
}

// A process has ended: server/reaper.hpp. Returns how many tasks it was running.
std::size_t reap(Plane& plane, std::uint32_t slot, std::uint32_t generation, std::uint32_t pid,
                 const std::string& reason) {
  nb::gil_scoped_release unlocked;
  return plane.reaper->reap({slot, generation}, pid, reason);
}

std::size_t tend(Plane& plane) {
  nb::gil_scoped_release unlocked;
  return plane.reaper->tend();
}

void lose(Plane& plane, ServerId lost, std::uint16_t incarnation) {
  nb::gil_scoped_release unlocked;
  plane.reaper->lose(lost, incarnation);
}

nb::tuple fence(Plane& plane) {
  const server::Reaper::Fence found = [&] {
    nb::gil_scoped_release unlocked;
    return plane.reaper->fence();
  }();
  nb::list pids;
  for (const std::uint32_t pid : found.pids) pids.append(pid);
  return nb::make_tuple(found.is_closed, pids);
}

nb::tuple usage_tuple(const server::Replicas::Usage& usage) { return nb::make_tuple(usage.versions, usage.bytes); }

nb::list replicas_of(const Plane& plane, ServerId server, std::size_t most) {
  nb::list rows;
  for (const server::Replicas::Version& kept : plane.server->replicas_of(server, most))
    rows.append(nb::make_tuple(kept.primary.address.raw(), kept.primary.colour, kept.stamp));
  return rows;
}

std::size_t drop_unused_replicas(Plane& plane, nb::sequence rows) {
  std::vector<server::Replicas::Version> kept;
  for (nb::handle row : rows) {
    server::Replicas::Version& version = kept.emplace_back();
    version.primary.address = Address(nb::cast<std::uint64_t>(row[0]));
    version.primary.colour = nb::cast<std::uint64_t>(row[1]);
    version.stamp = nb::cast<std::uint64_t>(row[2]);
  }
  return plane.server->drop_unused_replicas(kept);
}

nb::bytes control(Plane& plane, ServerId server, nb::bytes body) {
  const auto* first = reinterpret_cast<const std::byte*>(body.c_str());
  const std::span<const std::byte> request(first, body.size());
  Result<std::vector<std::byte>> reply = [&] {
    nb::gil_scoped_release unlocked;
    return plane.runtime.peers->control(server, request);
  }();
  const auto answer = unwrap(std::move(reply));
  return nb::bytes(answer.data(), answer.size());
}

nb::tuple protect(Plane& plane, ServerId backup, ServerId server) {
  Result<server::Replicas::Usage> sent = [&] {
    nb::gil_scoped_release unlocked;
    return plane.server->protect(backup, server);
  }();
  return usage_tuple(unwrap(std::move(sent)));
}

nb::list suspects(const Plane& plane, std::size_t most) {
  const std::vector<GlobalPointer> found = [&] {
    nb::gil_scoped_release unlocked;
    return plane.unnamed->suspects(most);
  }();
  nb::list pointers;
  for (const GlobalPointer& pointer : found) pointers.append(to_tuple(pointer));
  return pointers;
}

server::Unnamed::Addresses to_addresses(nb::sequence asked) {
  server::Unnamed::Addresses addresses;
  for (nb::handle address : asked) addresses.insert(nb::cast<std::uint64_t>(address));
  return addresses;
}

nb::list to_list(const std::vector<std::uint64_t>& addresses) {
  nb::list list;
  for (const std::uint64_t address : addresses) list.append(address);
  return list;
}

nb::list search(const Plane& plane, nb::sequence asked) {
  const server::Unnamed::Addresses addresses = to_addresses(asked);
  return to_list([&] {
    nb::gil_scoped_release unlocked;
    return plane.unnamed->search(addresses);
  }());
}

nb::object reveal(const Plane& plane, nb::sequence asked, std::uint64_t ticket) {
  const auto found = plane.unnamed->reveal(to_addresses(asked), ticket);
  return found ? nb::object(to_list(*found)) : nb::none();
}

std::size_t free_unnamed(Plane& plane, nb::sequence blocks) {
  std::vector<GlobalPointer> pointers;
  for (nb::handle block : blocks) pointers.push_back(to_pointer(nb::cast<nb::tuple>(block)));
  nb::gil_scoped_release unlocked;
  return plane.unnamed->free(pointers);
}

void close(Plane& plane) {
  nb::gil_scoped_release unlocked;
  plane.runtime.partition->close();
  plane.server->stop();
  plane.runtime.peers->close();
}

}  // namespace

void register_plane(nb::module_& module) {
  module.attr("NO_SERVER") = kNoServer;
  nb::class_<Plane>(module, "ServerPlane", "A server's partition and serve threads.")
      .def_static("create", &create, nb::arg("server"), nb::arg("incarnation"), nb::arg("heap_bytes"), nb::arg("host"),
                  nb::arg("port"), nb::arg("threads"), nb::arg("token"), nb::arg("log").none(), nb::arg("pid"),
                  nb::arg("replicates_all") = false,
                  nb::rv_policy::take_ownership)
      .def_prop_ro("memfd", [](const Plane& p) { return p.runtime.partition->memfd(); })
      .def_prop_ro("port", [](const Plane& p) { return p.server->port(); })
      .def("set_endpoint",
           [](Plane& p, ServerId server, std::uint64_t epoch, const std::string& host, std::uint16_t port,
              ServerId by, ServerId backup) {
             p.runtime.partition->set_endpoint(server, {epoch, host, port, by, backup});
           },
           nb::arg("server"), nb::arg("epoch"), nb::arg("host"), nb::arg("port"), nb::arg("by") = kNoServer,
           nb::arg("backup") = kNoServer)
      .def("fail_records",
           [](Plane& p, ServerId lost, std::uint16_t incarnation) { return p.server->fail_records(lost, incarnation); },
           nb::arg("lost"), nb::arg("incarnation"))
      .def("settle_records", [](Plane& p) { return p.server->settle_records(); })
      .def("lose", &lose, nb::arg("lost"), nb::arg("incarnation"), "By the reaping thread, as reap() and tend().")
      .def("fence", &fence, "(closed, pids of workers to be ended). By the reaping thread.")
      .def("close_replicas",
           [](Plane& p, ServerId lost, std::uint16_t incarnation) {
             return usage_tuple(p.server->close_replicas(lost, incarnation));
           },
           nb::arg("lost"), nb::arg("incarnation"))
      .def("promote", [](Plane& p, ServerId lost) { return usage_tuple(p.server->promote(lost)); }, nb::arg("lost"))
      .def("free_orphans", [](Plane& p, ServerId lost) { return p.server->free_orphans(lost); }, nb::arg("lost"))
      .def("suspects", &suspects, nb::arg("most"))
      .def("watch", [](const Plane& p) { return p.unnamed->watch(); })
      .def("search", &search, nb::arg("addresses"))
      .def("reveal", &reveal, nb::arg("addresses"), nb::arg("ticket"))
      .def("free_unnamed", &free_unnamed, nb::arg("blocks"))
      .def("protect", &protect, nb::arg("backup"), nb::arg("server"))
      .def_prop_ro("has_replicated", [](const Plane& p) { return p.runtime.partition->has_replicated(); })
      .def("replicas", [](const Plane& p) { return usage_tuple(p.server->replicas()); })
      .def("replicas_of", &replicas_of, nb::arg("server"), nb::arg("most"))
      .def("drop_unused_replicas", &drop_unused_replicas, nb::arg("replicas"))
      .def("control", &control, nb::arg("server"), nb::arg("body"))
      .def("take_control", &take_control, nb::arg("timeout_ms"))
      .def("reply_control", &reply_control, nb::arg("id"), nb::arg("body"))
      .def("reap", &reap, nb::arg("slot"), nb::arg("generation"), nb::arg("pid") = 0, nb::arg("reason") = "")
      .def("tend", &tend, "Goes on with what reap() could not finish; how many dead processes have something out.")
      .def("give", [](Plane& p, ServerId thief, std::uint32_t most) { nb::gil_scoped_release u; return p.takeovers->give(thief, most); },
           nb::arg("thief"), nb::arg("most"), "Hands queued tasks over to another server; how many it has.")
      .def("tend_given", [](Plane& p) { nb::gil_scoped_release u; return p.takeovers->tend(); },
           "Goes on with what give() could not finish; how many tasks are still open.")
      .def("trim", [](Plane& p, std::uint64_t keep) { nb::gil_scoped_release u; return p.runtime.partition->trim(keep); },
           nb::arg("keep_bytes"))
      .def("processes", [](const Plane& p) { return processes_list(*p.runtime.partition); })
      .def("find_wait", [](const Plane& p, std::uint64_t who, std::uint64_t token) {
             return find_wait(*p.runtime.partition, who, token);
           }, nb::arg("who"), nb::arg("token"))
      .def("find_held", [](const Plane& p, nb::tuple hold) {
             return heap::find_held(*p.runtime.partition, to_pointer(hold)).address.raw();
           }, nb::arg("hold"), "The address of the shared object that a hold names; 0 if it is none.")
      .def("usage", [](const Plane& p) { return usage_dict(*p.runtime.partition); })
      .def("counters", [](const Plane& p) { return counters_dict(*p.runtime.partition); })
      .def("largest_blocks",
           [](const Plane& p, std::size_t most) { return largest_list(*p.runtime.partition, most); }, nb::arg("most"))
      .def("live_blocks", [](const Plane& p) { return p.runtime.partition->live_blocks(); })
      .def("queued", [](const Plane& p) { return nb::make_tuple(p.runtime.queue->ready(), p.runtime.queue->running()); })
      .def("measure", [](const Plane& p) { return measure(p.runtime); })
      .def("set_load", [](const Plane& p, ServerId server, nb::tuple row) { set_load(p.runtime, server, row); },
           nb::arg("server"), nb::arg("row"))
      .def("evict", [](Plane& p, std::uint64_t bytes) { nb::gil_scoped_release u; return p.runtime.copies->evict(bytes); },
           nb::arg("bytes"))
      .def("close", &close);
}

}  // namespace drust::bind
