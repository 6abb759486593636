//! Carries transactions to nf_tables: one batch, one datagram, all or nothing.
//!
//! Must not compare or decide.

use std::collections::BTreeMap;
use std::ffi::{CString, NulError};
use std::io::{self, IoSlice};

use nftnl::{Batch, ChainType, MsgType, Policy, Table};

use super::encode::{concatenation, encode, family};
use super::netfilter::Socket;
use super::nft_sys::{ELEMENTS_MAX, ElementData, ElementsMessage, Set, SetMessage, SetShape};
use crate::rules::{
    ChainName, Data, Elements, Family, Field, Hook, Leads, Op, Rule, Shape, Transaction, Verdict,
};

/// `NFT_SET_MAP`.
pub(super) const SET_IS_MAP: u32 = 0x8;
/// Data type of verdicts.
const TYPE_VERDICT: u32 = 0xffff_ff00;
const VERDICT_BYTES: u32 = 16;

/// Why a transaction was not applied; nothing of it was.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NftError {
    #[error("netfilter socket")]
    Socket(#[source] io::Error),
    #[error("{operation}")]
    Refused {
        operation: String,
        #[source]
        source: io::Error,
    },
    #[error("the kernel didn't answer the transaction")]
    Unanswered,
    #[error("a name with a zero byte")]
    Name(#[from] NulError),
}

/// A batch in the making, with what each message was for.
struct Draft<'a> {
    batch: Batch,
    table: &'a Table,
    table_name: CString,
    family: Family,
    purposes: Vec<String>,
    sets: u32,
}

impl Draft<'_> {
    fn add<T: nftnl::NlMsg>(&mut self, message: &T, kind: MsgType, purpose: impl Into<String>) {
        self.batch.add(message, kind);
        self.purposes.push(purpose.into());
    }

    fn op(&mut self, op: &Op) -> Result<(), NftError> {
        match op {
            Op::AddTable => self.add(self.table, MsgType::Add, "add table"),
            Op::DeleteTable => self.add(self.table, MsgType::Del, "delete table"),
            Op::AddChain(name, hook) => {
                let name_c = CString::new(&**name)?;
                let mut chain = nftnl::Chain::new(&name_c, self.table);
                if let Some(hook) = hook {
                    let (point, priority, kind) = hooked(*hook);
                    chain.set_hook(point, priority);
                    chain.set_type(kind);
                    chain.set_policy(Policy::Accept);
                }
                self.add(&chain, MsgType::Add, format!("add chain {name}"));
            }
            Op::DeleteChain(name) => {
                let name_c = CString::new(&**name)?;
                let chain = nftnl::Chain::new(&name_c, self.table);
                self.add(&chain, MsgType::Del, format!("delete chain {name}"));
            }
            Op::FlushChain(name) => {
                let name_c = CString::new(&**name)?;
                let chain = nftnl::Chain::new(&name_c, self.table);
                // A rule without a handle: all of the chain's.
                let rule = nftnl::Rule::new(&chain);
                self.add(&rule, MsgType::Del, format!("flush chain {name}"));
            }
            Op::AddRule(name, rule) => self.rule(name, rule)?,
            Op::AddMap(name, shape) => self.map(name, shape)?,
            Op::AddElements(name, shape, elements) => {
                self.elements(name, shape, elements, MsgType::Add)?;
            }
            Op::DeleteElements(name, shape, elements) => {
                self.elements(name, shape, elements, MsgType::Del)?;
            }
        }
        Ok(())
    }

    fn rule(&mut self, name: &ChainName, rule: &Rule) -> Result<(), NftError> {
        let name_c = CString::new(&**name)?;
        let chain = nftnl::Chain::new(&name_c, self.table);
        let mut encoded = nftnl::Rule::new(&chain);
        for statement in rule {
            for expr in encode(self.family, statement)? {
                encoded.add_expr(&expr);
            }
        }
        self.add(&encoded, MsgType::Add, format!("add rule to {name}: {rule:?}"));
        Ok(())
    }

    fn map(&mut self, name: &str, shape: &Shape) -> Result<(), NftError> {
        self.sets += 1;
        let mut set = Set::new(&self.table_name, &CString::new(name)?, family(self.family));
        set.shape(set_shape(self.family, shape), self.sets);
        self.add(&SetMessage(&set), MsgType::Add, format!("add map {name}"));
        Ok(())
    }

    fn elements(
        &mut self,
        name: &str,
        shape: &Shape,
        elements: &Elements,
        kind: MsgType,
    ) -> Result<(), NftError> {
        let name_c = CString::new(name)?;
        let verb = if kind == MsgType::Add { "add" } else { "delete" };
        let mut chains: BTreeMap<ChainName, CString> = BTreeMap::new();
        for (_, data) in elements {
            if let Data::Verdict(Verdict::Goto(to) | Verdict::Jump(to)) = data
                && !chains.contains_key(to)
            {
                chains.insert(to.clone(), CString::new(&**to)?);
            }
        }
        for chunk in elements.chunks(ELEMENTS_MAX) {
            let mut set = Set::new(&self.table_name, &name_c, family(self.family));
            for (key, data) in chunk {
                let data = match (kind, data) {
                    (MsgType::Del, _) | (_, Data::Member) => ElementData::None,
                    (_, Data::Target { .. }) => ElementData::Bytes(data.target_bytes()),
                    (_, Data::Verdict(verdict)) => element_verdict(verdict, &chains),
                };
                set.push(key.bytes(), &data);
            }
            let purpose = format!("{verb} {} elements of {name} ({:?})", chunk.len(), shape.leads);
            self.add(&ElementsMessage(&set), kind, purpose);
        }
        Ok(())
    }
}

fn element_verdict<'a>(
    verdict: &Verdict,
    chains: &'a BTreeMap<ChainName, CString>,
) -> ElementData<'a> {
    match verdict {
        Verdict::Accept => ElementData::Verdict(libc::NF_ACCEPT, None),
        Verdict::Drop => ElementData::Verdict(libc::NF_DROP, None),
        Verdict::Goto(to) => {
            ElementData::Verdict(libc::NFT_GOTO, chains.get(to).map(CString::as_c_str))
        }
        Verdict::Jump(to) => {
            ElementData::Verdict(libc::NFT_JUMP, chains.get(to).map(CString::as_c_str))
        }
    }
}

fn hooked(hook: Hook) -> (nftnl::Hook, i32, ChainType) {
    match hook {
        Hook::PreroutingNat => (nftnl::Hook::PreRouting, -100, ChainType::Nat),
        Hook::OutputNat => (nftnl::Hook::Out, -100, ChainType::Nat),
        Hook::PostroutingNat => (nftnl::Hook::PostRouting, 100, ChainType::Nat),
        Hook::PreroutingFilter => (nftnl::Hook::PreRouting, -110, ChainType::Filter),
        Hook::OutputFilterFirst => (nftnl::Hook::Out, -110, ChainType::Filter),
        Hook::InputFilter => (nftnl::Hook::In, 0, ChainType::Filter),
        Hook::ForwardFilter => (nftnl::Hook::Forward, 0, ChainType::Filter),
        Hook::OutputFilter => (nftnl::Hook::Out, 0, ChainType::Filter),
    }
}

fn set_shape(family: Family, shape: &Shape) -> SetShape {
    let (key_type, key_bytes) = concatenation(family, &shape.key);
    let data = match shape.leads {
        Leads::Member => None,
        Leads::Verdict => Some((TYPE_VERDICT, VERDICT_BYTES)),
        Leads::Target => Some(concatenation(family, &[Field::Destination, Field::Port])),
    };
    SetShape { key_type, key_bytes, data }
}

/// Applies all of a transaction or nothing.
pub(crate) fn apply(transaction: &Transaction) -> Result<(), NftError> {
    let table_name = CString::new(&*transaction.table)?;
    let table = Table::new(&table_name, family(transaction.family));
    let mut draft = Draft {
        batch: Batch::new(),
        table: &table,
        table_name,
        family: transaction.family,
        purposes: Vec::new(),
        sets: 0,
    };
    for op in &transaction.ops {
        draft.op(op)?;
    }
    let Draft { batch, purposes, .. } = draft;
    let batch = batch.finalize();
    let sequences = batch.sequence_numbers();
    // Kernels since 6.10 number (and acknowledge) the batch's begin and end too.
    let first = sequences.start + u32::from(sequences.len() > purposes.len());
    let pages: Vec<&[u8]> = batch.iter().collect();
    let parts: Vec<IoSlice<'_>> = pages.iter().map(|page| IoSlice::new(page)).collect();
    let socket = Socket::open().map_err(NftError::Socket)?;
    let answers = socket.send_batch(&parts).map_err(NftError::Socket)?;
    if let Some(refused) = answers.iter().find(|answer| answer.errno != 0) {
        let index = refused.sequence.checked_sub(first).and_then(|i| usize::try_from(i).ok());
        let purpose = index.and_then(|index| purposes.get(index));
        return Err(NftError::Refused {
            operation: purpose.cloned().unwrap_or_else(|| "transaction".to_owned()),
            source: io::Error::from_raw_os_error(refused.errno),
        });
    }
    if answers.is_empty() && !purposes.is_empty() {
        return Err(NftError::Unanswered);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::process::Command;

    use super::*;
    use crate::diff::plan_transaction;
    use crate::kernel::nft_dump;
    use crate::render::render_ruleset;
    use crate::render::services::tests::desired;
    use crate::rules::Ruleset;
    use crate::script;

    /// Runs a test in a namespace of its own; says so when it can't.
    fn in_own_netns(test: &str, run: impl FnOnce() + Send + 'static) {
        if !nix::unistd::geteuid().is_root() || Command::new("nft").arg("-v").output().is_err() {
            eprintln!("SKIPPED {test}: needs root and nft");
            return;
        }
        let thread = std::thread::spawn(move || {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
            run();
        });
        thread.join().unwrap();
    }

    /// The table as nft shows it, without the lines on types: `typeof` is nft's own annotation.
    fn list() -> String {
        let output = Command::new("nft").args(["list", "ruleset"]).output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        let kept = text.lines().filter(|line| {
            let line = line.trim_start();
            let declares = line.starts_with("typeof ") || line.starts_with("type ");
            !declares || line.contains("hook")
        });
        let mut words: Vec<String> = Vec::new();
        for line in kept {
            words.push(line.trim().to_owned());
        }
        sorted_elements(&decimal(&words.join("\n")))
    }

    /// The kernel's hash order of elements is by chance.
    fn sorted_elements(text: &str) -> String {
        let mut out = String::new();
        let mut rest = text;
        while let Some((before, after)) = rest.split_once("elements = {") {
            let (inside, after) = after.split_once('}').unwrap();
            let mut elements: Vec<&str> = inside.split(',').map(str::trim).collect();
            elements.sort_unstable();
            out += before;
            out += &elements.join("\n");
            rest = after;
        }
        out + rest
    }

    /// An index is a number to nft's `typeof` and a mark, in hexadecimal, to its plain types.
    fn decimal(text: &str) -> String {
        let word = |word: &str| match word.strip_prefix("0x").filter(|digits| digits.len() == 8) {
            Some(digits) => u32::from_str_radix(digits, 16).unwrap().to_string(),
            None => word.to_owned(),
        };
        let line = |line: &str| line.split(' ').map(word).collect::<Vec<_>>().join(" ");
        text.lines().map(line).collect::<Vec<_>>().join("\n")
    }

    #[test]
    fn the_kernel_holds_what_the_script_says() {
        in_own_netns("the_kernel_holds_what_the_script_says", || {
            for family in Family::BOTH {
                let ruleset = render_ruleset(&desired(), family, "flotilla");
                let path = tempfile::NamedTempFile::new().unwrap();
                std::fs::write(path.path(), script::render(&ruleset.install())).unwrap();
                let nft = Command::new("nft").arg("-f").arg(path.path()).output().unwrap();
                assert!(nft.status.success(), "{}", String::from_utf8_lossy(&nft.stderr));
                let by_nft = list();
                assert!(by_nft.contains("goto ports-of-host") && by_nft.contains(". 0 : "));
                apply(&Ruleset::uninstall(family, "flotilla")).unwrap();
                assert_eq!(list(), "");
                apply(&ruleset.install()).unwrap();
                assert_eq!(list(), by_nft);
                apply(&Ruleset::uninstall(family, "flotilla")).unwrap();
            }
        });
    }

    #[test]
    fn what_is_there_is_read_back_and_changes_are_seen() {
        in_own_netns("what_is_there_is_read_back_and_changes_are_seen", || {
            let old = render_ruleset(&desired(), Family::V4, "flotilla");
            let mut next = desired();
            next.vips.pop_first();
            let new = render_ruleset(&next, Family::V4, "flotilla");
            let shapes = |ruleset: &Ruleset| -> BTreeMap<_, _> {
                ruleset.maps.iter().map(|(name, map)| (*name, map.shape.clone())).collect()
            };
            apply(&old.install()).unwrap();
            apply(&plan_transaction(&old, &new)).unwrap();
            let seen = nft_dump::observe(Family::V4, "flotilla", &shapes(&new)).unwrap();
            for (name, map) in &new.maps {
                assert_eq!(seen.elements[*name], map.elements, "{name}");
            }
            let generation = nft_dump::generation().unwrap();
            let flush = "nft flush chain ip flotilla refuse";
            assert!(Command::new("sh").args(["-c", flush]).status().unwrap().success());
            assert_ne!(nft_dump::generation().unwrap(), generation);
            let after = nft_dump::observe(Family::V4, "flotilla", &shapes(&new)).unwrap();
            assert_ne!(after.fingerprint, seen.fingerprint);
            // A refused transaction changes nothing and is named.
            let error = apply(&plan_transaction(&old, &new)).unwrap_err();
            assert!(matches!(error, NftError::Refused { .. }), "{error:?}");
            let unchanged = nft_dump::observe(Family::V4, "flotilla", &shapes(&new)).unwrap();
            assert_eq!(unchanged, after);
        });
    }

    #[test]
    fn ten_thousand_services_are_one_batch() {
        in_own_netns("ten_thousand_services_are_one_batch", || {
            let mut many = desired();
            let (vip, target) = many.vips.pop_first().unwrap();
            for index in 0..10_000u32 {
                let address = std::net::Ipv4Addr::from(0x0a60_0000 + index).into();
                many.vips.insert(crate::desired::Vip { address, ..vip }, target.clone());
            }
            let ruleset = render_ruleset(&many, Family::V4, "flotilla");
            let start = std::time::Instant::now();
            apply(&ruleset.install()).unwrap();
            eprintln!("10,000 services x 2 endpoints: {:?}", start.elapsed());
            let shapes: BTreeMap<_, _> =
                ruleset.maps.iter().map(|(name, map)| (*name, map.shape.clone())).collect();
            let seen = nft_dump::observe(Family::V4, "flotilla", &shapes).unwrap();
            assert_eq!(seen.elements["services"], ruleset.maps["services"].elements);
            assert_eq!(seen.elements["endpoints"], ruleset.maps["endpoints"].elements);
        });
    }
}
