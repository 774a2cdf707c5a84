//! The table of commands.

use serde_json::{Value, json};

use super::arguments::{
    configuration, exactly, limit, no_more, none, number, size_of, split_keys, text_of,
};
use super::{Command, Names, adding, snapshot};
use crate::console::session::{Session, Trouble, print};
use crate::console::{follow, help, shell, show, top};
use crate::control::protocol;

/// Keys of a limit.
const LIMIT_KEYS: &[&str] = &["iops=", "bw=", "burst="];

/// All of them, in the order in which help lists them.
pub(in crate::console) const COMMANDS: &[Command] = &[
    Command {
        words: &["status"],
        usage: "",
        about: "how the appliance is, and what is not as it should be",
        more: "The first thing to look at. Each problem comes with the command that tells more, or \
               mends it.",
        names: Names::Nothing,
        keys: &[],
        run: |session, given| {
            none("status", given)?;
            session.show("status", &Value::Null, show::status)
        },
    },
    Command {
        words: &["tenants"],
        usage: "",
        about: "the tenants' HBAs, and what each does",
        more: "An HBA is attached while its function or socket is served. IN FLIGHT are commands \
               that its disks have not finished.",
        names: Names::Nothing,
        keys: &[],
        run: |session, given| {
            none("tenants", given)?;
            session.show("hbas", &Value::Null, show::tenants)
        },
    },
    Command {
        words: &["luns"],
        usage: "",
        about: "the LUNs: size, state, who sees each where",
        more: "TARGET:LUN says where a tenant sees it.",
        names: Names::Nothing,
        keys: &[],
        run: |session, given| {
            none("luns", given)?;
            session.show("luns", &Value::Null, show::luns)
        },
    },
    Command {
        words: &["disks"],
        usage: "",
        about: "the disks under the LUNs, and how full they are",
        more: "USED is what a file occupies, LEFT what its filesystem has for all.",
        names: Names::Nothing,
        keys: &[],
        run: |session, given| {
            none("disks", given)?;
            session.show("disks", &Value::Null, show::disks)
        },
    },
    Command {
        words: &["show"],
        usage: "NAME",
        about: "everything about one tenant or LUN",
        more: "Errors are told by sense key, latencies from being fetched to being given back.",
        names: Names::Either,
        keys: &[],
        run: |session, given| {
            let [name] = exactly("show", given)?;
            session.show("show", &json!({ "name": name }), show::one)
        },
    },
    Command {
        words: &["top"],
        usage: "",
        about: "live: operations, bandwidth and latency of every LUN",
        more: "Full screen, once a second. q leaves it.",
        names: Names::Nothing,
        keys: &[],
        run: |session, given| {
            none("top", given)?;
            top::run(session)
        },
    },
    Command {
        words: &["explain"],
        usage: "LUN",
        about: "why a LUN is slow or stuck",
        more: "Says what waits on what: commands under way with their age, a disk that hangs, a \
               pause, a reservation, a tenant that is drained.",
        names: Names::Lun,
        keys: &[],
        run: |session, given| {
            let [lun] = exactly("explain", given)?;
            session.show("explain", &json!({ "lun": lun }), show::explanation)
        },
    },
    Command {
        words: &["trace"],
        usage: "LUN [COUNT | follow]",
        about: "the last commands to a LUN, decoded",
        more: "128 are kept for each worker of a tenant that sees it. `follow` shows them as they \
               come, until Ctrl-C.",
        names: Names::Lun,
        keys: &["follow"],
        run: |session, given| match given {
            [lun, word] if word == "follow" => follow::trace(session, lun),
            [lun] => session.show("trace", &json!({ "lun": lun }), show::trace),
            [lun, count] => {
                let most: usize = number("trace", count)?;
                session.show("trace", &json!({ "lun": lun, "most": most }), show::trace)
            }
            _ => Err(help::usage("trace")),
        },
    },
    Command {
        words: &["log"],
        usage: "[COUNT | follow | level [TARGET LEVEL]]",
        about: "the appliance's log, and what is logged",
        more: "`follow` shows lines as they come, until Ctrl-C. `level appliance::worker debug` \
               logs more of one module until the appliance ends.",
        names: Names::Nothing,
        keys: &["follow", "level"],
        run: log,
    },
    adding::LUN,
    Command {
        words: &["lun", "remove"],
        usage: "LUN",
        about: "take a LUN away; its data stays",
        more: "Commands to it end at once, and the tenants' drivers are told. Unmount it there \
               before.",
        names: Names::Lun,
        keys: &[],
        run: |session, given| {
            let [name] = exactly("lun remove", given)?;
            session.show("lun.remove", &json!({ "name": name }), show::applied)
        },
    },
    Command {
        words: &["lun", "resize"],
        usage: "LUN SIZE",
        about: "make a LUN on a file larger, while it is used",
        more: "SIZE is in bytes, or as 10G. A LUN does not become smaller. One on a block device \
               grows with that by itself.",
        names: Names::Lun,
        keys: &[],
        run: |session, given| {
            let [name, size] = exactly("lun resize", given)?;
            let bytes = size_of(&size)?;
            let params = json!({ "name": name, "bytes": bytes });
            session.show("lun.resize", &params, show::resized)
        },
    },
    Command {
        words: &["lun", "move"],
        usage: "LUN TENANT [at=LUN]",
        about: "take a LUN from its tenant and show it to another",
        more: "The other sees it when all commands of the first are over. If they do not end \
               within 10 s, it is put back.",
        names: Names::Lun,
        keys: &["at="],
        run: |session, given| {
            let (plain, mut keys) = split_keys(given)?;
            let [name, hba] = exactly("lun move", &plain)?;
            let mut params = json!({ "name": name, "hba": hba });
            if let Some(at) = keys.remove("at") {
                params["at"] = text_of(&at).into();
            }
            no_more("lun move", &keys)?;
            session.show("lun.move", &params, show::applied)
        },
    },
    snapshot::SNAPSHOT,
    snapshot::CLONE,
    Command {
        words: &["lun", "limit"],
        usage: "LUN [iops=N|none] [bw=SIZE|none] [burst=MS]",
        about: "limit what all may do with a LUN in a second",
        more: "What is over the limit waits before the disk. SIZE is bytes a second, or as 10M. As \
               much as comes in MS milliseconds may be saved up, 50 unless it is said. What is not \
               given stays; `none` takes it away. Other LUNs notice nothing.",
        names: Names::Lun,
        keys: LIMIT_KEYS,
        run: |session, given| {
            let (plain, mut keys) = split_keys(given)?;
            let [name] = exactly("lun limit", &plain)?;
            let params = limit("lun limit", &name, &mut keys)?;
            no_more("lun limit", &keys)?;
            session.show("lun.limit", &params, show::applied)
        },
    },
    Command {
        words: &["tenant", "limit"],
        usage: "TENANT [iops=N|none] [bw=SIZE|none] [burst=MS] [group=GROUP|none] [weight=N]",
        about: "limit what a tenant may do in a second",
        more: "As `lun limit`, over all of its LUNs. With `group` it shares the limit of one that \
               `group limit` has made; there, and at LUNs that tenants share, each gets as much as \
               its weight says, and what one leaves the others get.",
        names: Names::Tenant,
        keys: &["iops=", "bw=", "burst=", "group=", "weight="],
        run: |session, given| {
            let (plain, mut keys) = split_keys(given)?;
            let [name] = exactly("tenant limit", &plain)?;
            let mut params = limit("tenant limit", &name, &mut keys)?;
            if let Some(group) = keys.remove("group") {
                let group = text_of(&group);
                params["group"] = if group == "none" {
                    "".into()
                } else {
                    group.into()
                };
            }
            if let Some(weight) = keys.remove("weight") {
                params["weight"] = weight;
            }
            no_more("tenant limit", &keys)?;
            session.show("hba.limit", &params, show::applied)
        },
    },
    Command {
        words: &["group", "limit"],
        usage: "GROUP [iops=N|none] [bw=SIZE|none] [burst=MS]",
        about: "limit what the tenants of a group may do together",
        more: "Makes the group, if it is not there; one without limits is taken out. `tenant limit \
               TENANT group=GROUP weight=N` puts a tenant into it.",
        names: Names::Nothing,
        keys: LIMIT_KEYS,
        run: |session, given| {
            let (plain, mut keys) = split_keys(given)?;
            let [name] = exactly("group limit", &plain)?;
            let params = limit("group limit", &name, &mut keys)?;
            no_more("group limit", &keys)?;
            session.show("group.limit", &params, show::applied)
        },
    },
    adding::TENANT,
    Command {
        words: &["tenant", "remove"],
        usage: "TENANT",
        about: "take an HBA out; its LUNs stay",
        more: "Its tenant loses the adapter.",
        names: Names::Tenant,
        keys: &[],
        run: |session, given| {
            let [name] = exactly("tenant remove", given)?;
            session.show("hba.remove", &json!({ "name": name }), show::applied)
        },
    },
    Command {
        words: &["tenant", "pause"],
        usage: "TENANT",
        about: "take no new commands of a tenant, at once",
        more: "As `drain`, but it does not wait for those that are under way: it says how many \
               there are. `tenant resume TENANT` ends it.",
        names: Names::Tenant,
        keys: &[],
        run: |session, given| {
            let [name] = exactly("tenant pause", given)?;
            let params = json!({ "name": name, "wait_s": 0 });
            session.show("drain", &params, show::drained)
        },
    },
    Command {
        words: &["tenant", "resume"],
        usage: "TENANT",
        about: "take commands of a paused tenant again",
        more: "The same as `resume`.",
        names: Names::Tenant,
        keys: &[],
        run: |session, given| {
            let [name] = exactly("tenant resume", given)?;
            session.show("resume", &json!({ "name": name }), show::drained)
        },
    },
    Command {
        words: &["drain"],
        usage: "TENANT [SECONDS]",
        about: "take no new commands of a tenant, wait for the others",
        more: "New commands wait in the tenant's rings, whose patience is some tens of seconds. \
               `resume TENANT` ends it.",
        names: Names::Tenant,
        keys: &[],
        run: |session, given| {
            let (name, wait) = match given {
                [name] => (name, None),
                [name, wait] => (name, Some(number::<u64>("drain", wait)?)),
                _ => return Err(help::usage("drain")),
            };
            let mut params = json!({ "name": name });
            if let Some(wait) = wait {
                params["wait_s"] = wait.into();
            }
            session.show("drain", &params, show::drained)
        },
    },
    Command {
        words: &["resume"],
        usage: "TENANT",
        about: "take commands of a drained tenant again",
        more: "",
        names: Names::Tenant,
        keys: &[],
        run: |session, given| {
            let [name] = exactly("resume", given)?;
            session.show("resume", &json!({ "name": name }), show::drained)
        },
    },
    Command {
        words: &["metrics"],
        usage: "",
        about: "what monitoring systems are told",
        more: "OpenMetrics, as at [metrics] listen: for a machine that no network reaches.",
        names: Names::Nothing,
        keys: &[],
        run: |session, given| {
            none("metrics", given)?;
            session.show("metrics", &Value::Null, |metrics: &protocol::Metrics, _| {
                metrics.text.clone()
            })
        },
    },
    Command {
        words: &["config", "show"],
        usage: "",
        about: "the configuration in force",
        more: "",
        names: Names::Nothing,
        keys: &[],
        run: |session, given| {
            none("config show", given)?;
            session.show("config.get", &Value::Null, |text: &protocol::Text, _| {
                text.text.clone()
            })
        },
    },
    Command {
        words: &["config", "check"],
        usage: "[FILE]",
        about: "whether a configuration makes sense and could be applied",
        more: "FILE is read by the console; without it the appliance looks at its own file.",
        names: Names::Nothing,
        keys: &[],
        run: |session, given| {
            let params = configuration("config check", given)?;
            session.show("config.check", &params, show::checked)
        },
    },
    Command {
        words: &["config", "diff"],
        usage: "[FILE]",
        about: "what would be different with it",
        more: "+ comes, - goes, ~ changes.",
        names: Names::Nothing,
        keys: &[],
        run: |session, given| {
            let params = configuration("config diff", given)?;
            session.show("config.diff", &params, show::diff)
        },
    },
    Command {
        words: &["config", "apply"],
        usage: "[FILE]",
        about: "put it into force, all of it or nothing",
        more: "Tenants whose LUNs are the same notice nothing. What a LUN is cannot change while \
               it is there: take it out, apply, add it again.",
        names: Names::Nothing,
        keys: &[],
        run: |session, given| {
            let params = configuration("config apply", given)?;
            session.show("config.apply", &params, show::applied)
        },
    },
    Command {
        words: &["config", "save"],
        usage: "[FILE]",
        about: "write what is in force into the appliance's file",
        more: "Until then a change is gone when the appliance ends. FILE is one of the appliance's \
               machine.",
        names: Names::Nothing,
        keys: &[],
        run: |session, given| {
            let params = match given {
                [] => Value::Null,
                [path] => json!({ "path": path }),
                _ => return Err(help::usage("config save")),
            };
            session.show("config.save", &params, show::saved)
        },
    },
    Command {
        words: &["shell"],
        usage: "",
        about: "a shell here, where that is allowed",
        more: "$SHELL, or /bin/sh, on the machine that the console runs on; `exit` leads back. The \
               appliance has no part in it. It is allowed where the console is started with \
               --allow-shell, as on the serial console of the storage VM's image.",
        names: Names::Nothing,
        keys: &[],
        run: |session, given| {
            none("shell", given)?;
            shell::run(session)
        },
    },
    Command {
        words: &["help"],
        usage: "[COMMAND]",
        about: "what there is, or how a command is said",
        more: "",
        names: Names::Command,
        keys: &[],
        run: |session, given| {
            print(&help::help(given, session.style)?);
            Ok(())
        },
    },
];

fn log(session: &mut Session, given: &[String]) -> Result<(), Trouble> {
    let words: Vec<_> = given.iter().map(String::as_str).collect();
    match words[..] {
        [] => session.show("log.read", &Value::Null, show::log),
        ["follow"] => follow::log(session),
        ["level"] => session.show("log.level", &Value::Null, show::level),
        ["level", target, level] => {
            let params = json!({ "target": target, "level": level });
            session.show("log.level", &params, show::level)
        }
        [count] => {
            let most: usize = number("log", count)?;
            session.show("log.read", &json!({ "most": most }), show::log)
        }
        _ => Err(help::usage("log")),
    }
}
