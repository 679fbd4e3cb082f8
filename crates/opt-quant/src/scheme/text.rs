//! Schemes as text.

use std::fmt;
use std::str::FromStr;

use opt_core::{DType, Error, Result};

use super::{Format, Granularity, Scheme};

/// Every format under its name.
const FORMATS: [(&str, Scheme); 17] = [
    ("int8", Scheme::int8()),
    ("uint8", Scheme::uint8()),
    ("int4", Scheme::int4()),
    ("uint4", Scheme::uint4()),
    ("int2", Scheme::int2()),
    ("uint2", Scheme::uint2()),
    ("fp8_e4m3", Scheme::fp8_e4m3()),
    ("fp8_e5m2", Scheme::fp8_e5m2()),
    ("nf4", Scheme::nf4()),
    ("mxfp8", Scheme::mxfp8()),
    ("mxfp8_e5m2", Scheme::mxfp8_e5m2()),
    ("mxfp6", Scheme::mxfp6()),
    ("mxfp6_e3m2", Scheme::mxfp6_e3m2()),
    ("mxfp4", Scheme::mxfp4()),
    ("nvfp4", Scheme::nvfp4()),
    ("f16", Scheme::f16()),
    ("bf16", Scheme::bf16()),
];

/// What a scheme without a zero point and with one are called; formats that never have one say
/// nothing.
fn symmetry(scheme: &Scheme) -> Option<&'static str> {
    match (scheme.symmetric, scheme.format) {
        (false, _) => Some("asymmetric"),
        (true, Format::Int(_)) => Some("symmetric"),
        _ => None,
    }
}

impl fmt::Display for Scheme {
    /// The format, then what is not fixed by it: `int4, group 32, symmetric`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let named = FORMATS.iter().find(|(_, s)| s.format == self.format);
        let (name, usual) = named.expect("every format has a name");
        f.write_str(name)?;
        if let Some(bits) = self.bits {
            write!(f, ", {bits} bits")?;
        }
        let fixed = matches!(self.format, Format::Mx(_) | Format::NvFp4 | Format::Half(_));
        if !fixed || self.granularity != usual.granularity {
            match self.granularity {
                Granularity::Tensor => f.write_str(", per tensor")?,
                Granularity::Channel => f.write_str(", per channel")?,
                Granularity::Group(size) => write!(f, ", group {size}")?,
            }
        }
        match symmetry(self) {
            Some(text) => write!(f, ", {text}"),
            None => Ok(()),
        }
    }
}

impl FromStr for Scheme {
    type Err = Error;

    /// Reads what `Display` writes; what is left out is as the format's constructor has it.
    ///
    /// # Errors
    /// If a part is unknown, or they do not [go together](Scheme::check).
    fn from_str(text: &str) -> Result<Scheme> {
        let mut parts = text.split(',').map(str::trim);
        let name = parts.next().unwrap_or_default();
        let Some((_, scheme)) = FORMATS.iter().find(|(n, _)| *n == name) else {
            let names: Vec<&str> = FORMATS.iter().map(|(n, _)| *n).collect();
            return Err(Error::invalid(format!(
                "`{name}` is no number format; there are {}",
                names.join(", ")
            )));
        };
        let mut scheme = *scheme;
        for part in parts {
            let number = |text: &str| text.trim().parse().ok();
            scheme = match part {
                "per tensor" => scheme.per_tensor(),
                "per channel" => scheme.per_channel(),
                "symmetric" => scheme.symmetric(),
                "asymmetric" => scheme.asymmetric(),
                _ => {
                    let group = part.strip_prefix("group ").and_then(number);
                    let bits = part.strip_suffix(" bits").and_then(number);
                    match (group, bits) {
                        (Some(size), _) => scheme.group(size as usize),
                        (_, Some(bits)) => scheme.bits(bits),
                        _ => {
                            return Err(Error::invalid(format!(
                                "`{part}` in the scheme `{text}`; there are `per tensor`, \
                                 `per channel`, `group N`, `symmetric`, `asymmetric` and `N bits`"
                            )));
                        }
                    }
                }
            };
        }
        scheme.check()?;
        Ok(scheme)
    }
}

impl From<Scheme> for String {
    fn from(scheme: Scheme) -> String {
        scheme.to_string()
    }
}

impl TryFrom<String> for Scheme {
    type Error = Error;

    fn try_from(text: String) -> Result<Scheme> {
        text.parse()
    }
}

impl Scheme {
    /// The integers of a dtype, as its constructor has them.
    ///
    /// # Errors
    /// If it is no integer of 8, 4 or 2 bits.
    pub fn integers(dtype: DType) -> Result<Scheme> {
        dtype.int_range()?;
        let found = FORMATS.iter().find(|(_, s)| s.format == Format::Int(dtype));
        Ok(found.expect("every integer type has a format").1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_goes_there_and_back() {
        let mut all: Vec<Scheme> = FORMATS.iter().map(|(_, s)| *s).collect();
        all.extend([
            Scheme::int8().per_tensor().asymmetric(),
            Scheme::uint4().group(128).symmetric(),
            Scheme::int4().bits(3).per_channel(),
            Scheme::nf4().group(32),
            Scheme::nf4().per_tensor(),
            Scheme::fp8_e4m3().per_tensor(),
        ]);
        for scheme in all {
            let text = scheme.to_string();
            assert_eq!(text.parse::<Scheme>().unwrap(), scheme, "{text}");
            let json = serde_json::to_string(&scheme).unwrap();
            assert_eq!(json, format!("\"{text}\""));
            assert_eq!(serde_json::from_str::<Scheme>(&json).unwrap(), scheme);
        }
        for (scheme, text) in [
            (Scheme::int8(), "int8, per channel, symmetric"),
            (Scheme::activations(), "uint8, per tensor, asymmetric"),
            (Scheme::int4().bits(3), "int4, 3 bits, group 32, symmetric"),
            (Scheme::nf4(), "nf4, group 64"),
            (Scheme::mxfp6(), "mxfp6"),
            (Scheme::bf16(), "bf16"),
        ] {
            assert_eq!(scheme.to_string(), text);
        }
        assert_eq!("int4".parse::<Scheme>().unwrap(), Scheme::int4());
        for text in [
            "",
            "int3",
            "int4, group x",
            "int4, group -1",
            "int4; group 2",
            "int4,",
            "nf4, asymmetric",
        ] {
            assert!(text.parse::<Scheme>().is_err(), "{text}");
        }
    }
}
