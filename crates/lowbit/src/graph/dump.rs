//! A graph as text, one node a line.

use std::fmt;

use super::{Graph, Kind, Var};

impl fmt::Display for Graph {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names =
            |vars: &[Var]| vars.iter().map(|v| self.value(*v).name.as_str()).collect::<Vec<_>>().join(", ");
        for (_, node) in self.nodes() {
            let made: Vec<String> = node.outputs.iter().map(|o| format!("{}: {}", o.name, o.fact)).collect();
            let made = made.join(", ");
            match &node.kind {
                Kind::Input => writeln!(f, "{made} = input")?,
                Kind::Const(_) => writeln!(f, "{made} = constant")?,
                Kind::Apply { op, inputs } => {
                    writeln!(f, "{made} = {}({})", op.name(), names(inputs))?;
                    for line in op
                        .bodies()
                        .iter()
                        .flat_map(|b| b.to_string().lines().map(str::to_owned).collect::<Vec<_>>())
                    {
                        writeln!(f, "    {line}")?;
                    }
                }
            }
        }
        let outputs: Vec<String> =
            self.outputs().map(|(name, v)| format!("{name} = {}", self.value(v).name)).collect();
        writeln!(f, "output {}", outputs.join(", "))
    }
}
