// Evaluates a network of masked convolutions pixel by pixel. When a row begins, everything that depends only on the
// rows above is computed for the whole row: the sums over the taps above, and the values of vertical stacks. At each
// pixel, only the taps of its own row are left.

#include "cpu/conv/draw.h"
#include "cpu/conv/gate.h"
#include "cpu/conv/pixel_convolution.h"
#include "cpu/kit/activation.h"
#include "cpu/pixel_network.h"

namespace fused_rnn::cpu {
namespace {

template <typename T>
struct Network {
  const PixelNetworkParams<T>& p;

  // Calls body(panel, its packed weights) for each panel of some groups of a convolution.
  template <typename Body>
  void for_each_panel(const PixelConvolution<T>& convolution, Range groups, const Body& body) const {
    const Correlation<T> c = correlation(convolution);
    int64_t packed = 0;
    for (int64_t group = 0; group < groups.end; ++group)
      packed = for_each_panel_of(c, group, p.groups, packed, [&](const Panel& panel) {
        if (group >= groups.begin) body(panel, p.packed + convolution.packed + panel.packed);
      });
  }

  // Computes the sums of some groups of a convolution, or adds to them. Of each `parts` panels, it takes one.
  void convolve(const PixelNode& node, Range groups, TapRows rows, const Pixels& pixels, int64_t part = 0,
                int64_t parts = 1) const {
    const PixelConvolution<T>& convolution = p.convolutions[node.convolution];
    int64_t index = 0;
    for_each_panel(convolution, groups, [&](const Panel& panel, const T* packed) {
      // The centre tap of a group must be added by the thread that has computed the group's other taps.
      if (convolution.sizes.data_channels == 1 && index++ % parts != part) return;
      if (convolution.sizes.data_channels > 1 && part != 0) return;
      for_vectors_of<T>(panel.columns.size(), [&](auto vectors) {
        add_panel<T, vectors()>(convolution, panel, packed, p.values[node.inputs[0]], p.values[node.output], rows,
                                pixels);
      });
    });
  }

  // Calls body(lanes, first input, second input, output) for each vector of some channels of the pixels.
  template <typename Body>
  void map(const PixelNode& node, Range channels, const Pixels& pixels, const Body& body) const {
    const PixelValue<T>& a = p.values[node.inputs[0]];
    const PixelValue<T>& b = p.values[node.inputs[1]];
    const PixelValue<T>& out = p.values[node.output];
    for (int64_t image = pixels.images.begin; image < pixels.images.end; ++image)
      for (int64_t column = pixels.columns.begin; column < pixels.columns.end; ++column)
        for (int64_t channel = channels.begin; channel < channels.end; channel += kLanes<T>)
          body(smaller(kLanes<T>, channels.end - channel), a.at(image, pixels.row, column) + channel,
               b.at(image, pixels.row, column) + channel, out.at(image, pixels.row, column) + channel);
  }

  // Computes what is no convolution, for some groups of channels.
  void compute(const PixelNode& node, Range groups, const Pixels& pixels) const {
    const int64_t channels = p.values[node.output].channels;
    const Range range = {channels_of(groups.begin, p.groups, channels).begin,
                         channels_of(groups.end - 1, p.groups, channels).end};
    switch (node.kind) {
      case PixelNodeKind::kReLU:
        return map(node, range, pixels, [](int64_t count, const T* a, const T*, T* out) {
          store(out, Activation::relu(load(a, count)), count);
        });
      case PixelNodeKind::kAdd:
        return map(node, range, pixels, [](int64_t count, const T* a, const T* b, T* out) {
          store(out, load(a, count) + load(b, count), count);
        });
      case PixelNodeKind::kMultiply:
        return map(node, range, pixels, [](int64_t count, const T* a, const T* b, T* out) {
          store(out, load(a, count) * load(b, count), count);
        });
      case PixelNodeKind::kCopy:
        return map(node, {0, node.channels}, pixels, [&](int64_t count, const T* a, const T*, T* out) {
          store(out + node.to, load(a + node.from, count), count);
        });
      default:
        return gate(node, node.channels == p.groups ? groups : Range{0, node.channels}, pixels);
    }
  }

  // Computes some groups of channels of a gated activation, whose number of groups is node.channels.
  void gate(const PixelNode& node, Range groups, const Pixels& pixels) const {
    const PixelValue<T>& in = p.values[node.inputs[0]];
    const PixelValue<T>& out = p.values[node.output];
    const int64_t size = out.channels / node.channels;
    for (int64_t image = pixels.images.begin; image < pixels.images.end; ++image)
      for (int64_t column = pixels.columns.begin; column < pixels.columns.end; ++column)
        for (int64_t group = groups.begin; group < groups.end; ++group)
          gate_values(in.at(image, pixels.row, column) + 2 * group * size,
                      in.at(image, pixels.row, column) + (2 * group + 1) * size,
                      out.at(image, pixels.row, column) + group * size, size);
  }

  // Computes everything that depends only on the rows above. Threads that share the images take a part of the columns
  // each, and wait for one another where a convolution reads its neighbours' values.
  void begin_row(const Pixels& pixels, const auto& meet) const {
    const Range groups = {0, p.groups};
    for (int64_t i = 0; i < p.node_count; ++i) {
      const PixelNode& node = p.nodes[i];
      const bool convolution = node.kind == PixelNodeKind::kConvolution;
      if (node.whole_row && convolution) {
        meet();
        convolve(node, groups, TapRows::kAll, pixels);
      } else if (node.whole_row) {
        compute(node, groups, pixels);
      } else if (convolution && p.convolutions[node.convolution].sizes.kernel_height > 1) {
        convolve(node, groups, TapRows::kAbove, pixels);
      }
    }
  }

  // Whether threads divide the columns of a convolution at a single pixel.
  bool divides(const PixelNode& node, int64_t images) const {
    constexpr int64_t kWorthIt = 1 << 17;  // multiply-adds, which take several times as long as two barriers
    if (node.kind != PixelNodeKind::kConvolution) return false;
    const MaskedConv2dSizes& s = p.convolutions[node.convolution].sizes;
    return s.data_channels == 1 &&
           images * (s.kernel_width / 2 + 1) * s.in_channels * s.out_channels >= kWorthIt * p.groups;
  }

  // Computes what is left of one group of a pixel's channels, and draws it.
  void finish_pixel(const Pixels& pixels, int64_t group, const auto& meet, int64_t thread, int64_t team) const {
    const Range groups = {group, group + 1};
    for (int64_t i = 0; i < p.node_count; ++i) {
      const PixelNode& node = p.nodes[i];
      if (node.whole_row) continue;
      if (team > 1 && divides(node, pixels.images.size())) {
        meet();
        convolve(node, groups, TapRows::kOwn, pixels, thread, team);
        meet();
      } else if (thread == 0) {
        node.kind == PixelNodeKind::kConvolution ? convolve(node, groups, TapRows::kOwn, pixels)
                                                 : compute(node, groups, pixels);
      }
    }
    if (thread == 0) draw_pixels(p, pixels, group);
  }
};

template <typename T>
void run(const PixelNetworkParams<T>& p) {
  const Network<T> network = {p};
  Barrier barrier;
  parallel(p.threads, [&](int64_t thread, int64_t team) {
    // If there are enough images, each thread computes its own. Otherwise all threads work on the same ones.
    const bool alone = p.batch >= team;
    const Range images = alone ? share(p.batch, thread, team) : Range{0, p.batch};
    const Range columns = alone ? Range{0, p.width} : share(p.width, thread, team);
    const auto meet = [&] {
      if (!alone) barrier.wait(team, thread);
    };
    for (int64_t step = p.begin; step < p.end; ++step) {
      const int64_t pixel = step / p.groups, group = step % p.groups;
      const int64_t row = pixel / p.width, column = pixel % p.width;
      if (column == 0 && group == 0) {
        meet();  // the row above is complete
        network.begin_row({images, columns, row}, meet);
        meet();
      }
      network.finish_pixel({images, {column, column + 1}, row}, group, meet, alone ? 0 : thread, alone ? 1 : team);
    }
  });
}

template <typename T>
int64_t pack_all(const PixelNetworkPackParams<T>& p) {
  int64_t size = 0;
  for (int64_t i = 0; i < p.convolution_count; ++i) {
    const Correlation<T> c = correlation(p.convolutions[i]);
    int64_t end = 0;
    for (int64_t group = 0; group < p.groups; ++group)
      end = for_each_panel_of(c, group, p.groups, end, [&](const Panel& panel) {
        if (p.packed) pack(c, panel, p.packed + size + panel.packed, 0, 1);
      });
    p.offsets[i] = size;
    size += end;
  }
  return size;
}

}  // namespace

namespace CPU_CAPABILITY {

int64_t pixel_network_pack(const PixelNetworkPackParams<float>& params) { return pack_all(params); }
int64_t pixel_network_pack(const PixelNetworkPackParams<double>& params) { return pack_all(params); }
void pixel_network(const PixelNetworkParams<float>& params) { run(params); }
void pixel_network(const PixelNetworkParams<double>& params) { run(params); }

}  // namespace CPU_CAPABILITY
}  // namespace fused_rnn::cpu
