// What is said once about every op of a training graph: its name in profiles, whether it works row by row, how it is
// differentiated. The rules of ggml's ops stand in the families beside this file, those of our own nodes beside the
// code that runs them.
//
// Symbols: T tokens, shapes in ggml order (ne[0] runs fastest). d<name> is the gradient of the loss with respect to
// <name>.
#pragma once

#include <ggml.h>

#include <string>
#include <vector>

namespace ggtune {

class Ops;

// The gradients of a backward pass, as a rule sees them.
class Gradients {
  public:
    virtual ~Gradients() = default;

    // Whether something trainable is upstream of t.
    virtual bool needs_gradient(const ggml_tensor * t) const = 0;

    // d(loss)/dt += dt, where t needs a gradient. F32, the shape of t, any strides.
    virtual void add(ggml_tensor * t, ggml_tensor * dt) = 0;
    // The same for a dt that was made for this and is read by nothing else: later terms may be added to it in place.
    virtual void add_own(ggml_tensor * t, ggml_tensor * dt) = 0;
    // Where a term of d(loss)/dt can be added in place, or nullptr: then it has to be added with add_own().
    virtual ggml_tensor * own_gradient(const ggml_tensor * t) const = 0;
    // What own_gradient() has become by the addition.
    virtual void set_own_gradient(const ggml_tensor * t, ggml_tensor * dt) = 0;

    // The accumulator of a trainable leaf, or nullptr; and the word that the leaf's gradient has been added to it.
    virtual ggml_tensor * accumulator(const ggml_tensor * leaf) const = 0;
    virtual void add_result(ggml_tensor * leaf, ggml_tensor * accumulated) = 0;
};

// One step of a backward pass: all that a gradient rule has to work with.
struct BackwardStep {
    Gradients & gradients;
    Ops & ops;         // the implementation that serves the node
    ggml_tensor * y;   // the node; its operands are y->src
    ggml_tensor * dy;  // F32, the shape of y, any strides

    bool needs(const ggml_tensor * t) const { return gradients.needs_gradient(t); }
    void add(ggml_tensor * t, ggml_tensor * dt) const { gradients.add(t, dt); }
};
using GradientRule = void (*)(const BackwardStep & step);

// Whether the rows of a result each come from one row of the operands: then cutting the operands' rows cuts the
// result's, and changes nothing else.
enum class Rows { together, singly };

struct Op {
    // Where the gradient of what a node computes arrives: at the node, at a view that shows the part of it that is the
    // result, or nowhere, since rules of other nodes go past it (an operand in another form).
    enum class Arrival { node, view, nowhere };

    const char * name = nullptr;  // in profiles; nullptr: ggml's
    GradientRule rule = nullptr;  // nullptr: can't be differentiated
    Rows rows = Rows::together;
    // Nodes that the rule is for; nullptr: all.
    bool (*can_differentiate)(const ggml_tensor * node) = nullptr;
    Arrival arrival = Arrival::node;
    // ne[1] of a node whose operands have so many rows; nullptr: as many.
    int64_t (*cut_rows)(int64_t n_rows) = nullptr;
    // Fills `twin`, in the host's memory, with a result as the node may have it, where only the time counts that what
    // reads it takes; nullptr: any values do.
    void (*fill_twin)(ggml_tensor * twin, const ggml_tensor * node) = nullptr;
};

// An op of ggml's. `function`: of GGML_OP_UNARY and GGML_OP_GLU, which one; any_function: all that have no entry of
// their own.
constexpr int kAnyFunction = -1;
struct GgmlOp {
    ggml_op op;
    GradientRule rule;
    Rows rows = Rows::together;
    bool (*can_differentiate)(const ggml_tensor * node) = nullptr;
    int function = kAnyFunction;
};

// What the userdata of a custom node of ours points to. Copies of a node share it.
struct CustomNode {
    const Op * op;
    void (*run)(ggml_tensor * node, int ith, int nth, void * params);
    void * params;  // of the type that `run` and the rule of `op` know
};
// The function of all our custom nodes, by which they are known; `userdata` is a CustomNode.
void run_custom_node(ggml_tensor * node, int ith, int nth, void * userdata);
// A node of ggml's that carries a descriptor of ours, since devices run no custom nodes: it stands for all that is
// computed between its operands and src[0], which it copies. Its further operands are those that gradients go to, past
// the nodes between; the first one has the type of the result. `custom` must live as long as the graph; `run` is not
// called.
ggml_tensor * standing_for(ggml_context * ctx, ggml_tensor * result, const std::vector<ggml_tensor *> & operands,
                           CustomNode * custom);
// Operand i of such a node.
ggml_tensor * operand_behind(const ggml_tensor * node, int i);

// nullptr: not one of ours, and none that carries a descriptor
CustomNode * custom_node(const ggml_tensor * node);

// The descriptor by which a node is differentiated and cut; an empty one for ops that have none.
const Op & op_of(const ggml_tensor * node);

// A leaf, or a view that shows what another tensor holds.
bool computes_nothing(const ggml_tensor * node);

// For profiles: what a node does.
std::string describe(const ggml_tensor * node);

bool is_row_wise(const ggml_tensor * node);
int64_t cut_rows(const ggml_tensor * node, int64_t n_rows);

// A float among the parameters of a node of ggml's.
float float_param(const ggml_tensor * node, int index);

}  // namespace ggtune
