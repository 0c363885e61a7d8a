// How busy each server is, for whoever spawns: Runtime.loads and what writes the table (heap/loads.cpp).
//
// Of this process's own server the queue itself is looked at, which is as cheap as the table and never old.
#include "bind/loads.hpp"

#include <algorithm>

namespace drust::bind {
namespace {

// More than so many waiting tasks are not counted one by one at each spawn: the table says how many there were.
constexpr std::uint32_t kCountedMax = 256;

nb::tuple row_of(const Runtime& runtime, ServerId server) {
  const heap::Load load = runtime.partition->load(server);
  std::uint64_t idle = load.idle;
  std::uint64_t queued = load.queued + load.sent;
  std::uint64_t age_ms = load.age_ms;
  if (server == runtime.partition->server()) {
    idle = runtime.queue->idle();
    const std::uint64_t counted = runtime.queue->ready(kCountedMax);
    queued = counted < kCountedMax ? counted : std::max<std::uint64_t>(counted, load.queued);
  }
  return nb::make_tuple(server, age_ms, load.workers, idle, queued, load.cpu_permille, load.claimed_bytes, load.quota_bytes);
}

nb::list loads(const Runtime& runtime, ServerId servers) {
  nb::list rows;
  for (ServerId server = 0; server < servers; ++server) rows.append(row_of(runtime, server));
  return rows;
}

}  // namespace

void set_load(const Runtime& runtime, ServerId server, nb::tuple row) {
  if (server >= kServersPerClusterMax) throw nb::value_error("no row of the load table has that number");
  const auto word = [&row](std::size_t index) { return nb::cast<std::uint64_t>(row[index]); };
  runtime.partition->set_load(server, {.age_ms = word(0),
                                       .workers = word(1),
                                       .idle = word(2),
                                       .queued = word(3),
                                       .sent = 0,
                                       .cpu_permille = word(4),
                                       .quota_bytes = word(6),
                                       .claimed_bytes = word(5)});
}

nb::tuple measure(const Runtime& runtime) {
  const heap::Usage usage = runtime.partition->usage();
  return nb::make_tuple(runtime.queue->idle(), runtime.queue->ready(), usage.claimed_bytes, usage.quota_bytes);
}

void register_loads(nb::module_& module) {
  nb::handle runtime = module.attr("Runtime");
  runtime.attr("loads") =
      nb::cpp_function(&loads, nb::is_method(), nb::scope(runtime), nb::name("loads"), nb::arg("servers"));
  runtime.attr("set_load") = nb::cpp_function(&set_load, nb::is_method(), nb::scope(runtime), nb::name("set_load"),
                                              nb::arg("server"), nb::arg("row"));
}

}  // namespace drust::bind
