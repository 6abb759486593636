//! Jobs and CronJobs (`pkg/apis/batch/validation`).

use serde_json::Value;

use super::meta::label_selector;
use super::pod;
use super::semantic::same;
use super::view::{
    flag, get, has, immutable, int, not_negative, one_of, one_of_if_there, shown, sub, text,
};
use crate::field::{FieldError, FieldErrors, Path, quote};
use crate::object::map_mut;
use crate::selector::LabelSelector;

const SPEC: Path<'static> = Path::new("spec");
/// Names of the Jobs get eleven more characters.
const CRON_JOB_NAME_LEN_MAX: usize = 52;
const COUNTS: [&str; 5] = [
    "parallelism",
    "completions",
    "activeDeadlineSeconds",
    "backoffLimit",
    "ttlSecondsAfterFinished",
];

/// A Job. Its selector is made by the server before.
pub(super) fn job(errors: &mut FieldErrors, object: &Value) {
    let spec = sub(object, "spec");
    if let Some(selector) = get(spec, "selector") {
        label_selector(errors, selector, &SPEC.child("selector"));
        let labels = sub(sub(sub(spec, "template"), "metadata"), "labels");
        let read = LabelSelector::from_object(Some(selector));
        if read.is_ok_and(|read| !read.matches(&labels.as_object())) {
            let template = SPEC.child("template");
            let metadata = template.child("metadata");
            let why = "`selector` does not match template `labels`";
            errors.push(FieldError::invalid(&metadata.child("labels"), labels.clone(), why));
        }
    }
    job_spec(errors, spec, &SPEC);
}

fn job_spec(errors: &mut FieldErrors, spec: &Value, path: &Path<'_>) {
    not_negative(errors, spec, &COUNTS, path);
    one_of_if_there(errors, spec, "completionMode", &["Indexed", "NonIndexed"], path);
    let indexed = text(spec, "completionMode") == "Indexed";
    if indexed && !has(spec, "completions") {
        let why = "when completion mode is Indexed";
        errors.push(FieldError::required(&path.child("completions"), why));
    }
    for key in ["backoffLimitPerIndex", "maxFailedIndexes"] {
        if has(spec, key) && !indexed {
            let why = "requires indexed completion mode";
            errors.push(FieldError::invalid(&path.child(key), shown(spec, key), why));
        }
    }
    not_negative(errors, spec, &["backoffLimitPerIndex", "maxFailedIndexes"], path);
    let known = ["Failed", "TerminatingOrFailed"];
    one_of_if_there(errors, spec, "podReplacementPolicy", &known, path);
    let template_path = path.child("template");
    pod::template(errors, sub(spec, "template"), &template_path);
    let pod_path = template_path.child("spec");
    let policy = shown(sub(sub(spec, "template"), "spec"), "restartPolicy");
    let policy_path = pod_path.child("restartPolicy");
    match policy.as_str() {
        Some("Never") => {}
        Some("OnFailure") if has(spec, "podFailurePolicy") => {
            let why = "only \"Never\" is supported when podFailurePolicy is specified";
            errors.push(FieldError::invalid(&policy_path, policy, why));
        }
        Some("OnFailure") => {}
        _ => {
            let why = "valid values: \"OnFailure\", \"Never\"";
            errors.push(FieldError::required(&policy_path, why));
        }
    }
}

/// What of a Job must not change.
pub(super) fn update_job(errors: &mut FieldErrors, (object, old): (&Value, &Value)) {
    let (spec, before) = (sub(object, "spec"), sub(old, "spec"));
    let pair = (spec, before);
    let elastic = text(before, "completionMode") == "Indexed"
        && get(spec, "completions") == get(spec, "parallelism")
        && int(before, "completions") == int(before, "parallelism");
    if !elastic {
        immutable(errors, pair, "completions", &SPEC);
    }
    immutable(errors, pair, "selector", &SPEC);
    let (mut template, mut earlier) = (shown(spec, "template"), shown(before, "template"));
    let never_started = flag(before, "suspend") && !has(sub(old, "status"), "startTime");
    if never_started {
        loosen(&mut template);
        loosen(&mut earlier);
    }
    if !same(Some(&template), Some(&earlier)) {
        let path = SPEC.child("template");
        let value = shown(spec, "template");
        errors.push(FieldError::invalid(&path, value, super::view::IMMUTABLE));
    }
    for key in
        ["completionMode", "podFailurePolicy", "backoffLimitPerIndex", "managedBy", "successPolicy"]
    {
        immutable(errors, pair, key, &SPEC);
    }
}

/// Takes away what may change until a suspended Job starts.
fn loosen(template: &mut Value) {
    let metadata = map_mut(map_mut(template).entry("metadata").or_insert(Value::Null));
    metadata.remove("labels");
    metadata.remove("annotations");
    let spec = map_mut(map_mut(template).entry("spec").or_insert(Value::Null));
    for key in ["nodeSelector", "tolerations", "schedulingGates"] {
        spec.remove(key);
    }
    if let Some(affinity) = spec.get_mut("affinity") {
        map_mut(affinity).remove("nodeAffinity");
    }
}

/// A CronJob.
pub(super) fn cron_job(errors: &mut FieldErrors, object: &Value) {
    let name = crate::object::name(object);
    if name.len() > CRON_JOB_NAME_LEN_MAX {
        let metadata = Path::new("metadata");
        let why = format!("must be no more than {CRON_JOB_NAME_LEN_MAX} characters");
        errors.push(FieldError::invalid(&metadata.child("name"), name, why));
    }
    let spec = sub(object, "spec");
    schedule(errors, spec);
    not_negative(errors, spec, &["startingDeadlineSeconds"], &SPEC);
    one_of(errors, spec, "concurrencyPolicy", &["Allow", "Forbid", "Replace"], &SPEC);
    let template = SPEC.child("jobTemplate");
    let (job, path) = (sub(sub(spec, "jobTemplate"), "spec"), template.child("spec"));
    job_spec(errors, job, &path);
    if has(job, "selector") {
        let why = "`selector` will be auto-generated";
        let value = shown(job, "selector");
        errors.push(FieldError::invalid(&path.child("selector"), value, why));
    }
    if flag(job, "manualSelector") {
        let path = path.child("manualSelector");
        errors.push(FieldError::not_supported(&path, true, &["nil", "false"]));
    }
    not_negative(errors, spec, &["successfulJobsHistoryLimit", "failedJobsHistoryLimit"], &SPEC);
}

fn schedule(errors: &mut FieldErrors, spec: &Value) {
    let path = SPEC.child("schedule");
    let text = text(spec, "schedule");
    if text.is_empty() {
        return errors.push(FieldError::required(&path, ""));
    }
    if let Err(why) = parse_schedule(text) {
        errors.push(FieldError::invalid(&path, text, why));
    }
    if text.contains("TZ") {
        let why = "cannot use TZ or CRON_TZ in schedule, use timeZone field instead";
        errors.push(FieldError::invalid(&path, text, why));
    }
    let Some(zone) = get(spec, "timeZone").and_then(Value::as_str) else { return };
    let path = SPEC.child("timeZone");
    if zone.is_empty() {
        let why = "timeZone must be nil or non-empty string";
        errors.push(FieldError::invalid(&path, zone, why));
    } else if zone.eq_ignore_ascii_case("local") {
        let why =
            "timeZone must be an explicit time zone as defined in https://www.iana.org/time-zones";
        errors.push(FieldError::invalid(&path, zone, why));
    } else if jiff::tz::TimeZone::get(zone).is_err() {
        errors.push(FieldError::invalid(&path, zone, format!("unknown time zone {zone}")));
    }
}

const MONTHS: [&str; 12] =
    ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"];
const DAYS: [&str; 7] = ["sun", "mon", "tue", "wed", "thu", "fri", "sat"];
const MACROS: [&str; 7] =
    ["@yearly", "@annually", "@monthly", "@weekly", "@daily", "@midnight", "@hourly"];

/// Checks a standard cron expression, with the texts of the parser that upstream uses.
fn parse_schedule(text: &str) -> Result<(), String> {
    if text.starts_with('@') {
        let every = text.strip_prefix("@every ");
        let known = MACROS.contains(&text) || every.is_some_and(|period| !period.is_empty());
        return if known { Ok(()) } else { Err(format!("unrecognized descriptor: {text}")) };
    }
    let fields: Vec<&str> = text.split_whitespace().filter(|part| !part.contains("TZ=")).collect();
    let [minute, hour, day, month, weekday] = fields.as_slice() else {
        let count = fields.len();
        return Err(format!("expected exactly 5 fields, found {count}: [{}]", fields.join(" ")));
    };
    field(minute, (0, 59), &[])?;
    field(hour, (0, 23), &[])?;
    field(day, (1, 31), &[])?;
    field(month, (1, 12), &MONTHS)?;
    field(weekday, (0, 6), &DAYS)
}

fn field(text: &str, bounds: (u32, u32), names: &[&str]) -> Result<(), String> {
    text.split(',').filter(|part| !part.is_empty()).try_for_each(|part| range(part, bounds, names))
}

fn range(text: &str, (low, high): (u32, u32), names: &[&str]) -> Result<(), String> {
    let mut parts = text.split('/');
    let span = parts.next().unwrap_or_default();
    let step = parts.next();
    if parts.next().is_some() {
        return Err(format!("too many slashes: {text}"));
    }
    let number = |word: &str| -> Result<u32, String> {
        let lower = word.to_lowercase();
        if let Some(at) = names.iter().position(|name| *name == lower) {
            return Ok(low + u32::try_from(at).unwrap_or_default());
        }
        word.parse().map_err(|_| {
            let quoted = quote(word);
            format!(
                "failed to parse int from {word}: strconv.Atoi: parsing {quoted}: invalid syntax"
            )
        })
    };
    let (start, end) = if matches!(span, "*" | "?") {
        (low, high)
    } else {
        let mut ends = span.split('-');
        let start = number(ends.next().unwrap_or_default())?;
        let end = match ends.next() {
            Some(end) => number(end)?,
            None if step.is_some() => high,
            None => start,
        };
        if ends.next().is_some() {
            return Err(format!("too many hyphens: {text}"));
        }
        (start, end)
    };
    if start < low {
        return Err(format!("beginning of range ({start}) below minimum ({low}): {text}"));
    }
    if end > high {
        return Err(format!("end of range ({end}) above maximum ({high}): {text}"));
    }
    if start > end {
        return Err(format!("beginning of range ({start}) beyond end of range ({end}): {text}"));
    }
    match step.map(number) {
        Some(Err(why)) => Err(why),
        Some(Ok(0)) => Err(format!("step of range should be a positive number: {text}")),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::parse_schedule;

    #[test]
    fn schedules_are_read_as_upstream_reads_them() {
        for good in
            ["* * * * *", "*/5 0-23/2 1,15 JAN-mar Mon-Fri", "@hourly", "@every 1h", "0 0 ? * 0"]
        {
            assert_eq!(parse_schedule(good), Ok(()), "{good}");
        }
        let cases = [
            ("x", "expected exactly 5 fields, found 1: [x]"),
            ("60 * * * *", "end of range (60) above maximum (59): 60"),
            ("* * 0 * *", "beginning of range (0) below minimum (1): 0"),
            ("5-1 * * * *", "beginning of range (5) beyond end of range (1): 5-1"),
            ("*/0 * * * *", "step of range should be a positive number: */0"),
            (
                "a * * * *",
                "failed to parse int from a: strconv.Atoi: parsing \"a\": invalid syntax",
            ),
            ("@often", "unrecognized descriptor: @often"),
        ];
        for (bad, want) in cases {
            assert_eq!(parse_schedule(bad).unwrap_err(), want);
        }
    }
}
