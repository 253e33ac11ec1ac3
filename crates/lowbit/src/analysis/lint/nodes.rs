//! The rules of the lint, node by node.

use std::collections::HashSet;

use super::super::target::{Beyond, Bias, Needs};
use super::values::{Codes, Operand, Output, Values, moves};
use super::{Level, Remark, Rule};
use crate::graph::{Graph, Node, Var};
use crate::op::{Fact, Op};
use crate::ops::conv::Conv;
use crate::ops::conv_transpose::ConvTranspose;
use crate::ops::linear::{Gemm, MatMul};
use crate::ops::nbits::MatMulNBits;
use crate::ops::quantize::{DequantizeLinear, QuantizeLinear};
use crate::scheme::Granularity;
use crate::tensor::DType;

/// What the nodes of a graph gave.
#[derive(Default)]
pub struct Found {
    pub remarks: Vec<Remark>,
    pub macs: u64,
    pub integer_macs: u64,
}

/// Checks the nodes of `graph` and of the bodies in it.
pub fn check(graph: &Graph, needs: &Needs, found: &mut Found) {
    let mut linter = Linter { values: Values::of(graph), needs, found, useless: HashSet::new() };
    for (v, node, op, inputs) in graph.applied() {
        if op.bodies().is_empty() {
            linter.node(v, node, &**op, inputs);
        } else {
            linter.bodies(v, op.bodies());
        }
    }
}

struct Linter<'a, 'f> {
    values: Values<'a>,
    needs: &'a Needs,
    found: &'f mut Found,
    /// Dequantized values that the runtime does not compute with in int8.
    useless: HashSet<Var>,
}

/// One finding about a node, before it is written down.
struct Finding {
    rule: Rule,
    level: Level,
    text: String,
    suggestion: String,
}

impl Finding {
    fn new(rule: Rule, level: Level, text: impl Into<String>, suggestion: impl Into<String>) -> Finding {
        Finding { rule, level, text: text.into(), suggestion: suggestion.into() }
    }
}

impl<'a> Linter<'a, '_> {
    fn graph(&self) -> &'a Graph {
        self.values.graph
    }

    fn say(&mut self, node: &Node, op: &dyn Op, f: Finding) {
        self.found.remarks.push(Remark {
            code: format!("LB-{}{}", self.needs.letter, f.rule as u16),
            level: f.level,
            node: node.name.clone(),
            op: op.name().into(),
            text: f.text,
            suggestion: f.suggestion,
        });
    }

    /// Of the branches of a node that with the most multiply-accumulates counts, as often as it runs.
    fn bodies(&mut self, v: Var, bodies: &[Graph]) {
        let macs = self.graph().node_macs(v);
        let (mut most, mut integer) = (0, 0);
        for body in bodies {
            let mut inner = Found::default();
            check(body, self.needs, &mut inner);
            if inner.macs > most {
                (most, integer) = (inner.macs, inner.integer_macs);
            }
            self.found.remarks.append(&mut inner.remarks);
        }
        self.found.macs += macs;
        self.found.integer_macs += integer.saturating_mul(macs.checked_div(most).unwrap_or(0));
    }

    fn node(&mut self, v: Var, node: &Node, op: &dyn Op, inputs: &[Var]) {
        let macs = self.graph().node_macs(v);
        self.found.macs += macs;
        if let Some(f) = self.unknown(op, inputs).or_else(|| self.opset(op)) {
            return self.say(node, op, f);
        }
        let found = if op.is::<DequantizeLinear>().is_some() {
            let found: Vec<Finding> = self.values.codes(v).map_or(vec![], |codes| self.codes(&codes));
            if found.iter().any(|f| f.level != Level::Advice) {
                self.useless.insert(v);
            }
            found
        } else if op.is::<QuantizeLinear>().is_some() {
            return;
        } else if self.needs.compute.iter().any(|c| c.op == op.name()) {
            self.computes(v, op, inputs)
        } else if let Some(product) = op.is::<MatMulNBits>() {
            self.few_bits(product)
        } else if macs > 0 && !self.needs.integer.contains(&op.name()) {
            vec![self.no_form(op)]
        } else if macs == 0 {
            self.elementwise(v, op, inputs)
        } else {
            vec![]
        };
        if !found.iter().any(|f| f.level != Level::Advice) && !self.reads_useless(inputs) {
            self.found.integer_macs += macs;
        }
        found.into_iter().for_each(|f| self.say(node, op, f));
    }

    fn unknown(&self, op: &dyn Op, inputs: &[Var]) -> Option<Finding> {
        let (name, domain) = (self.needs.name, op.domain());
        let facts: Vec<&Fact> = inputs.iter().map(|v| self.graph().fact(*v)).collect();
        let absent = match domain {
            "" => self.needs.refused.contains(&op.name()),
            _ => {
                let expands = self.needs.functions && op.function(&facts).is_some();
                !expands && !self.needs.domains.contains(&domain)
            }
        };
        let what = if domain.is_empty() { op.name().into() } else { format!("{} of {domain}", op.name()) };
        absent.then(|| {
            let text = format!("{name} does not have the operator {what}");
            Finding::new(Rule::Unknown, Level::Refused, text, "quantize statically, with standard operators")
        })
    }

    fn opset(&self, op: &dyn Op) -> Option<Finding> {
        let most = self.needs.opset.filter(|most| op.opset() > *most && op.domain().is_empty())?;
        let text = format!("needs opset {}: {} reads opsets to {most}", op.opset(), self.needs.name);
        Some(Finding::new(Rule::Opset, Level::Refused, text, "write it with operators of an earlier opset"))
    }

    /// What the codes that a DequantizeLinear reads are to the runtime.
    fn codes(&self, c: &Codes) -> Vec<Finding> {
        let (needs, name) = (self.needs, self.needs.name);
        let level = match needs.beyond {
            Beyond::Refused => Level::Refused,
            Beyond::Float => Level::Float,
        };
        let again = format!("quantize with preset {:?}", preset(needs));
        if c.constant && c.dtype == DType::I32 {
            let text = format!("the bias is stored as int32 codes: {name} has biases in float");
            let found = Finding::new(Rule::Bias, Level::Refused, text, "store it in float (--target)");
            return if needs.bias == Bias::Float { vec![found] } else { vec![] };
        }
        let types = if c.constant { needs.weights } else { needs.activations };
        if c.constant && needs.stored.contains(&c.dtype) && !types.contains(&c.dtype) {
            let text = format!("{name} computes with {} weights in float", c.dtype);
            return vec![Finding::new(
                Rule::FewBits,
                Level::Float,
                text,
                "choose int8 weights for int8 products",
            )];
        }
        if !types.contains(&c.dtype) {
            let (rule, what) = match c.constant {
                true => (Rule::WeightType, "weights"),
                false => (Rule::ActivationType, "activations"),
            };
            let known: Vec<String> = types.iter().map(DType::to_string).collect();
            let text = format!("{} {what}: {name} computes with {}", c.dtype, known.join(" and "));
            return vec![Finding::new(rule, level, text, again)];
        }
        let Some(params) = &c.params else {
            let text = format!("its scale or zero point is computed by the model: {name} needs constants");
            return vec![Finding::new(Rule::ComputedScale, level, text, "quantize statically")];
        };
        let mut found = vec![];
        if needs.symmetric
            && let Some(z) = params.zero_point.iter().find(|z| **z != 0)
        {
            let text = format!("has zero point {z}: {name} has 0 alone");
            found.push(Finding::new(Rule::ZeroPoint, level, text, again));
        }
        match params.scheme.granularity {
            Granularity::Block { .. } => {
                let text = format!("has scales for blocks: {name} computes with such weights in float");
                let todo = "choose a scale for each channel";
                found.push(Finding::new(Rule::FewBits, Level::Float, text, todo));
            }
            Granularity::Axis(_) if !c.constant && params.scale.len() > 1 => {
                let text = format!("has {} scales: {name} has one for an activation", params.scale.len());
                found.push(Finding::new(
                    Rule::ActivationScales,
                    level,
                    text,
                    "choose a scale for the tensor",
                ));
            }
            _ => {}
        }
        found
    }

    fn reads_useless(&self, inputs: &[Var]) -> bool {
        let useless = |v: &Var| match self.values.operand(*v) {
            Operand::Codes(c) => self.useless.contains(&c.dequantized),
            _ => false,
        };
        inputs.iter().any(useless)
    }

    /// An operator with multiply-accumulates that the runtime has in int8.
    fn computes(&self, v: Var, op: &dyn Op, inputs: &[Var]) -> Vec<Finding> {
        let name = self.needs.name;
        let read: Vec<Operand> = inputs.iter().map(|v| self.values.operand(*v)).collect();
        let (Some(Operand::Codes(x)), Some(Operand::Codes(w))) = (read.first(), read.get(1)) else {
            let quantized = |i: usize| matches!(read.get(i), Some(Operand::Codes(_)));
            let what = match (quantized(0), quantized(1)) {
                (true, _) => "its second operand is",
                (_, true) => "its first operand is",
                _ => "its operands are",
            };
            let todo = "quantize both operands, or leave it in float";
            return vec![Finding::new(Rule::Operand, Level::Float, format!("{what} not quantized"), todo)];
        };
        let mut found = self.weight(op, w, self.graph().fact(inputs[1]).rank());
        let output = self.values.output(v);
        let must = self.needs.compute.iter().any(|c| c.op == op.name() && c.output);
        match &output {
            Output::Float if must => found.push(Finding::new(
                Rule::Output,
                Level::Float,
                format!("its output is not quantized right behind it, which {name} needs"),
                "put a QuantizeLinear behind it, read by nothing else",
            )),
            Output::Behind(f) if self.needs.alike => found.push(self.behind(f)),
            Output::Codes(y) if self.needs.alike && *y != x.dtype => found.push(self.mixed(x.dtype, *y)),
            _ => {}
        }
        if let Some(Operand::Plain(_)) = read.get(2)
            && self.needs.bias == Bias::CodesUnlessQuantized
            && !matches!(output, Output::Codes(_))
        {
            let text = "its bias is in float, and its output not quantized";
            found.push(Finding::new(
                Rule::Bias,
                Level::Float,
                text,
                "quantize its output, or its bias to int32",
            ));
        }
        if let Some(gemm) = op.is::<Gemm>()
            && gemm.beta != 1.0
            && self.needs.alike
            && matches!(read.get(2), Some(Operand::Codes(_) | Operand::Plain(_)))
        {
            let text = format!("has beta = {}: {name} has 1 alone", gemm.beta);
            found.push(Finding::new(Rule::BiasFactor, Level::Float, text, "multiply the bias by it"));
        }
        if !self.needs.everywhere.contains(&x.dtype)
            && self.needs.activations.contains(&x.dtype)
            && op.name().starts_with("Conv")
            && op.is::<ConvTranspose>().is_none()
        {
            let text =
                format!("{} activations: {name}'s convolutions run in int8 on newer CPUs alone", x.dtype);
            let todo = format!("quantize with preset {:?}", preset(self.needs));
            found.push(Finding::new(Rule::SomeCpus, Level::Advice, text, todo));
        }
        found
    }

    /// The scales of the weight of an operator.
    fn weight(&self, op: &dyn Op, w: &Codes, rank: usize) -> Vec<Finding> {
        let (Some(params), true, false) = (&w.params, w.constant, w.moved) else { return vec![] };
        let Granularity::Axis(axis) = params.scheme.granularity else { return vec![] };
        let mut found = vec![];
        if let Some(wanted) = output_axis(op, rank).filter(|wanted| *wanted != axis && params.scale.len() > 1)
        {
            let text =
                format!("the scales of its weight are along axis {axis}, its output channels along {wanted}");
            found.push(Finding::new(Rule::WeightAxis, Level::Float, text, format!("choose axis = {wanted}")));
        }
        let differ = params.zero_point.windows(2).any(|z| z[0] != z[1]);
        if differ && self.needs.alike && op.is::<Conv>().is_some() {
            let text =
                format!("the zero points of its weight differ: {} stops at its first run", self.needs.name);
            let todo = "quantize the weight symmetrically";
            found.push(Finding::new(Rule::WeightZeroPoints, Level::Refused, text, todo));
        }
        found
    }

    /// An operator without multiply-accumulates: a remark only if the model quantizes it.
    fn elementwise(&self, v: Var, op: &dyn Op, inputs: &[Var]) -> Vec<Finding> {
        let read: Vec<Operand> = inputs.iter().map(|v| self.values.operand(*v)).collect();
        let Some(Operand::Codes(x)) = read.iter().find(|o| matches!(o, Operand::Codes(_))) else {
            return vec![];
        };
        let outputs = self.graph().node(v).outputs.len();
        let made: Vec<Output> = (0..outputs).map(|i| self.values.output(v.output(i))).collect();
        let Some(Output::Codes(y)) = made.iter().find(|o| matches!(o, Output::Codes(_))) else {
            return vec![];
        };
        if moves(op) {
            return vec![];
        }
        if !self.needs.others.contains(&op.name()) {
            return vec![self.no_form(op)];
        }
        if !self.needs.alike {
            return vec![];
        }
        if matches!(op.name(), "Relu" | "Clip") {
            return if self.values.implies(v, op) { vec![] } else { vec![self.behind(op.name())] };
        }
        let types = read.iter().filter_map(|o| if let Operand::Codes(c) = o { Some(c.dtype) } else { None });
        if let Some(other) = types.chain([*y]).find(|t| *t != x.dtype) {
            return vec![self.mixed(x.dtype, other)];
        }
        if matches!(op.name(), "Add" | "Mul" | "Concat" | "Where")
            && read.iter().any(|o| matches!(o, Operand::Plain(DType::F32)))
        {
            let text = "one of its operands is not quantized";
            return vec![Finding::new(Rule::Operand, Level::Float, text, "quantize all of them")];
        }
        vec![]
    }

    /// A product with weights of few bits: in int8 if the operator says so and the runtime has it.
    fn few_bits(&self, product: &MatMulNBits) -> Vec<Finding> {
        if product.accuracy_level == Some(4) && self.needs.integer.contains(&"MatMulNBits") {
            return vec![];
        }
        let text = format!("{} computes with weights of few bits in float", self.needs.name);
        let todo = "choose --matmul-nbits int8 for onnxruntime, or int8 weights";
        vec![Finding::new(Rule::FewBits, Level::Float, text, todo)]
    }

    fn no_form(&self, op: &dyn Op) -> Finding {
        let text = format!("{} has no {} in int8", self.needs.name, op.name());
        let todo = "leave it in float (a rule with float = true): no codes are made around it in vain";
        Finding::new(Rule::Operator, Level::Float, text, todo)
    }

    fn behind(&self, activation: &str) -> Finding {
        let text = format!("the codes behind it stand for values that {activation} cuts off");
        let todo =
            "quantize its output from the least value that it gives (affine uint8 with a Relu: zero point 0)";
        Finding::new(Rule::Activation, Level::Float, text, todo)
    }

    fn mixed(&self, one: DType, other: DType) -> Finding {
        let text = format!("has {one} and {other} codes around it: {} has one type", self.needs.name);
        Finding::new(Rule::Mixed, Level::Float, text, "choose one format for activations")
    }
}

/// The preset whose codes a runtime takes.
fn preset(needs: &Needs) -> &'static str {
    if needs.symmetric { "tensorrt" } else { "default" }
}

/// The axis of the output channels in the weight of an operator.
fn output_axis(op: &dyn Op, rank: usize) -> Option<usize> {
    if op.is::<Conv>().is_some() {
        Some(0)
    } else if op.is::<ConvTranspose>().is_some() {
        Some(1)
    } else if let Some(gemm) = op.is::<Gemm>() {
        Some(usize::from(!gemm.trans_b))
    } else if op.is::<MatMul>().is_some() {
        rank.checked_sub(1)
    } else {
        None
    }
}
