// docs/protocol.md prints the table that the protocol computes.
//
// Set DRUST_UPDATE_DOCS to rewrite the generated blocks of the document instead of comparing them.
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <string>
#include <utility>

#include "test/harness.hpp"
#include "test/model/protocol_table.hpp"

namespace drust::test {
namespace {

std::string read_file(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>()};
}

TEST("docs/protocol.md prints the table that apply() computes") {
  std::string path = __FILE__;
  path = path.substr(0, path.rfind("native/test/")) + "docs/protocol.md";
  std::string text = read_file(path);
  if (!CHECK(!text.empty())) return;
  const bool update = std::getenv("DRUST_UPDATE_DOCS") != nullptr;
  const std::pair<const char*, std::string> blocks[] = {{"transitions", ProtocolTable::markdown()},
                                                        {"refusals", ProtocolTable::refusals()}};
  for (const auto& [name, table] : blocks) {
    const std::string begin = std::string("<!-- begin generated: ") + name + " -->\n";
    const std::string end = std::string("<!-- end generated: ") + name + " -->\n";
    const auto start = text.find(begin);
    const auto stop = text.find(end);
    if (!CHECK(start != std::string::npos && stop != std::string::npos && start < stop)) return;
    const auto from = start + begin.size();
    if (update) {
      text.replace(from, stop - from, table);
    } else {
      CHECK(text.substr(from, stop - from) == table);  // else: DRUST_UPDATE_DOCS=1 test_protocol_table
    }
  }
  if (update) std::ofstream(path, std::ios::binary) << text;
}

TEST("the printed table moves when the protocol does") {
  const std::string table = ProtocolTable::markdown();
  CHECK(table.find("| BorrowMutEnd | Modified here; ") != std::string::npos);
  CHECK(table.find("bump colour if published") != std::string::npos);
  CHECK(ProtocolTable::refusals().find("| BorrowMut | ok | BorrowMutConflict |") != std::string::npos);
}

}  // namespace
}  // namespace drust::test
