#include <dlfcn.h>

#include <array>
#include <mutex>

#include "driver.h"
#include "tensorrt.h"
#include "tensorrt_abis.h"  // FASTGEN_TENSORRT_ABIS(X) is X(10) X(11); written by CMakeLists.txt

namespace fastgen::tensorrt {

#define FASTGEN_DECLARE(major) extern const Abi abi_##major;
FASTGEN_TENSORRT_ABIS(FASTGEN_DECLARE)
#undef FASTGEN_DECLARE

std::vector<const Abi*> abis() {
#define FASTGEN_ADDRESS(major) &abi_##major,
  return {FASTGEN_TENSORRT_ABIS(FASTGEN_ADDRESS)};
#undef FASTGEN_ADDRESS
}

namespace {

constexpr int kFirstRtx = 10700;  // 1.7: the oldest whose classes are laid out like TensorRT 11's

std::mutex mutex;
LibraryInfo info;
Symbols symbols;
const Abi* abi = nullptr;

template <class Function>
Function symbol(void* handle, const char* name) {
  return reinterpret_cast<Function>(dlsym(handle, name));
}

std::string words(const char* text) { return text != nullptr ? text : "no reason given"; }

std::string folder_of(const std::string& path) {
  const size_t slash = path.rfind('/');
  return slash == std::string::npos ? "" : path.substr(0, slash + 1);
}

// getInferLibVersion: 110100 is 11.1.0, 8601 is 8.6.1; TensorRT for RTX counts anew, 10701 is
// 1.7.1, where 10.7.1 would be 100701.
bool is_rtx(int version) { return version >= 10000 && version < 20000; }

std::string version_text(int version, int build) {
  const int major = version >= 10000 ? version / 10000 : version / 1000;
  const int minor = version >= 10000 ? version / 100 % 100 : version / 100 % 10;
  std::string text =
      std::to_string(major) + "." + std::to_string(minor) + "." + std::to_string(version % 100);
  return build > 0 ? text + "." + std::to_string(build) : text;
}

std::string compiled_headers() {
  std::string text;
  for (const Abi* known : abis()) text += (text.empty() ? "" : ", ") + std::string(known->headers);
  return text;
}

// The headers whose layout of classes the library has.
const Abi* abi_for(const std::string& path, int version) {
  const int major = version / 10000;
  for (const Abi* known : abis())
    if (known->major == major) return known;
  const std::string text = version_text(version, 0);
  if (is_rtx(version)) {
    if (version < kFirstRtx)
      throw Unavailable(path + " is TensorRT for RTX " + text +
                        ", whose classes only its own headers describe; take 1.7 or newer, or "
                        "build fastgen with the headers of its SDK in TENSORRT_ROOT");
    for (const Abi* known : abis())
      if (known->major == 11) return known;
    throw Unavailable(path + " is TensorRT for RTX " + text +
                      ", which needs the headers of TensorRT 11; this build has those of " +
                      compiled_headers() + ": add them to TENSORRT_ROOT and build fastgen again");
  }
  throw Unavailable(path + " is TensorRT " + text + ", this build of fastgen has the headers of " +
                    compiled_headers() +
                    "; classes differ between major versions: install a fitting library, or build "
                    "fastgen again with TENSORRT_ROOT naming the headers of both");
}

const char* flavour_of(const std::string& path, int version, bool builder) {
  if (is_rtx(version)) return "rtx";
  if (path.find("nvinfer_dispatch") != std::string::npos) return "dispatch";
  return builder ? "full" : "lean";
}

std::string parser_name(const std::string& flavour, int major) {
  if (flavour == "rtx") return "libtensorrt_onnxparser_rtx.so.1";
  return "libnvonnxparser.so." + std::to_string(major);
}

// Packages name both files with the same version: .so.11, or .so.1.7.1.
std::string same_suffix(const std::string& name, const std::string& library) {
  const size_t suffix = library.rfind(".so");
  if (suffix == std::string::npos) return name;
  return name.substr(0, name.find(".so")) + library.substr(suffix);
}

void open_parser(const std::string& given, int version, LibraryInfo* found, Symbols* functions) {
  const std::string name = parser_name(found->flavour, version / 10000);
  const std::string folder = folder_of(found->path);
  const std::array<std::string, 4> tries = {given, folder + same_suffix(name, found->path),
                                            folder + name, name};
  for (const std::string& path : tries) {
    if (path.empty()) continue;
    void* handle = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (handle == nullptr) continue;
    functions->parser = symbol<decltype(functions->parser)>(handle, "createNvOnnxParser_INTERNAL");
    if (functions->parser != nullptr) {
      found->parser_path = path;
      return;
    }
  }
}

}  // namespace

LibraryInfo open_library(const std::string& path, const std::string& parser_path) {
  const std::lock_guard<std::mutex> lock(mutex);
  if (abi != nullptr) {
    if (path == info.path) return info;
    throw Unavailable("a process can hold one TensorRT library, and this one has " + info.path +
                      "; start another process for " + path);
  }
  void* handle = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (handle == nullptr) throw Unavailable(words(dlerror()));
  const auto number = symbol<int32_t (*)()>(handle, "getInferLibVersion");
  Symbols functions;
  functions.runtime = symbol<decltype(functions.runtime)>(handle, "createInferRuntime_INTERNAL");
  functions.builder = symbol<decltype(functions.builder)>(handle, "createInferBuilder_INTERNAL");
  if (number == nullptr || functions.runtime == nullptr)
    throw Unavailable(path + " is not a TensorRT library: it has no " +
                      (number == nullptr ? "getInferLibVersion" : "createInferRuntime_INTERNAL"));
  const int version = number();
  const auto build = symbol<int32_t (*)()>(handle, "getInferLibBuildVersion");
  LibraryInfo found;
  found.path = path;
  found.flavour = flavour_of(path, version, functions.builder != nullptr);
  found.version = version_text(version, build != nullptr ? build() : 0);
  if (found.flavour == "dispatch")
    throw Unavailable(path + " is the dispatch runtime, which only loads other runtimes; install " +
                      "TensorRT or its lean runtime");
  const Abi* fitting = abi_for(path, version);
  found.headers = fitting->headers;
  if (functions.builder != nullptr) open_parser(parser_path, version, &found, &functions);
  found.builds = functions.builder != nullptr && functions.parser != nullptr;
  info = found;
  symbols = functions;
  abi = fitting;
  return info;
}

const LibraryInfo& library() {
  const std::lock_guard<std::mutex> lock(mutex);
  if (abi == nullptr) throw Unavailable("no TensorRT library was opened yet");
  return info;
}

BuildResult build(const BuildRequest& request, const Events& events, int device) {
  const LibraryInfo& opened = library();
  if (symbols.builder == nullptr)
    throw Unavailable("the " + opened.flavour + " runtime " + opened.path +
                      " cannot build engines; install TensorRT, or bring engines from where it is");
  if (symbols.parser == nullptr)
    throw Unavailable("TensorRT's ONNX parser (" +
                      parser_name(opened.flavour, std::stoi(opened.version)) +
                      ") was not found beside " + opened.path + "; install it there");
  // libnvinfer without a device does not fail: it returns a pointer to nothing and crashes later.
  if (opened.flavour != "rtx" || Driver::get().why_not().empty()) {
    const DeviceScope scope(device);
    return abi->build(symbols, request, events);
  }
  return abi->build(symbols, request, events);
}

std::unique_ptr<Engine> deserialize(const void* plan, size_t bytes, int device) {
  const LibraryInfo& opened = library();
  const DeviceScope scope(device);  // throws without a device, see build()
  std::string reason;
  std::unique_ptr<Engine> engine = abi->deserialize(symbols, plan, bytes, &reason);
  if (!engine)
    throw std::invalid_argument("TensorRT " + opened.version + " does not accept the engine: " +
                                (reason.empty() ? "no reason was given" : reason));
  return engine;
}

std::string take_errors() {
  library();
  return abi->take_errors();
}

}  // namespace fastgen::tensorrt
