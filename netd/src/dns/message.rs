//! DNS messages as this resolver writes them: answers from the zone, errors, and what fits a datagram.
//!
//! Pure. What comes from outside is decoded by hickory and nothing else looks at its bytes.

use hickory_proto::op::{Edns, Message, MessageType, OpCode, ResponseCode};
use hickory_proto::rr::{DNSClass, Record};

use super::zone::{Answer, Zone};

/// Longest datagram we say that we take, and send: fits every path (DNS flag day 2020).
const PAYLOAD_BYTES: u16 = 1232;
/// Bytes of a message's header.
const HEADER_BYTES: usize = 12;
/// Bit of the header's third byte: this is an answer.
const ANSWER_BIT: u8 = 0x80;

/// What came in.
#[derive(Debug)]
pub(crate) enum Received {
    /// A question to be answered.
    Question(Box<Message>),
    /// No question that we answer; this is what to say.
    Refused(Box<Message>),
    /// Nothing that deserves an answer.
    Noise,
}

/// Reads a question.
pub(crate) fn read_question(bytes: &[u8]) -> Received {
    let [high, low, flags, ..] = *bytes else { return Received::Noise };
    if bytes.len() < HEADER_BYTES || flags & ANSWER_BIT != 0 {
        return Received::Noise;
    }
    let Ok(message) = Message::from_vec(bytes) else {
        let id = u16::from_be_bytes([high, low]);
        let refusal = Message::error_msg(id, OpCode::Query, ResponseCode::FormErr);
        return Received::Refused(Box::new(refusal));
    };
    let class = message.queries.first().map(hickory_proto::op::Query::query_class);
    let code = if message.metadata.op_code != OpCode::Query {
        ResponseCode::NotImp
    } else if message.queries.len() != 1 {
        ResponseCode::FormErr
    } else if message.version() > 0 {
        ResponseCode::BADVERS
    } else if class != Some(DNSClass::IN) {
        ResponseCode::Refused
    } else {
        return Received::Question(Box::new(message));
    };
    Received::Refused(Box::new(refuse(&message, code)))
}

/// An answer's frame: the question's id, flags, query and EDNS.
pub(crate) fn begin(question: &Message) -> Message {
    let mut answer = Message::new(question.metadata.id, MessageType::Response, OpCode::Query);
    answer.metadata.recursion_desired = question.metadata.recursion_desired;
    answer.metadata.recursion_available = true;
    answer.queries.clone_from(&question.queries);
    if question.edns.is_some() {
        let mut edns = Edns::new();
        edns.set_max_payload(PAYLOAD_BYTES);
        answer.set_edns(edns);
    }
    answer
}

/// An answer without records.
pub(crate) fn refuse(question: &Message, code: ResponseCode) -> Message {
    let mut answer = begin(question);
    answer.metadata.response_code = code;
    answer
}

/// The zone's answer as a message; none where the zone has nothing to say or somebody else has to be asked.
pub(crate) fn from_zone(question: &Message, zone: &Zone, answer: &Answer) -> Option<Message> {
    let mut message = begin(question);
    message.metadata.authoritative = true;
    match answer {
        Answer::NotOurs | Answer::Alias(..) => return None,
        Answer::NameError => {
            message.metadata.response_code = ResponseCode::NXDomain;
            message.add_authority(zone.soa());
        }
        Answer::NoData => {
            message.add_authority(zone.soa());
        }
        Answer::Records(answers, additionals) => {
            let mut answers = answers.clone();
            // Clients take the first: another one each time.
            let shift = usize::from(question.metadata.id).checked_rem(answers.len()).unwrap_or(0);
            answers.rotate_left(shift);
            message.insert_answers(answers);
            message.insert_additionals(additionals.clone());
        }
    }
    Some(message)
}

/// An alias and what it leads to.
pub(crate) fn from_alias(
    question: &Message,
    aliases: Vec<Record>,
    rest: Option<&Message>,
) -> Message {
    let mut message = begin(question);
    message.insert_answers(aliases);
    match rest {
        Some(rest) => {
            message.metadata.response_code = rest.metadata.response_code;
            message.answers.extend(rest.answers.iter().cloned());
            message.authorities.extend(rest.authorities.iter().cloned());
        }
        None => message.metadata.response_code = ResponseCode::ServFail,
    }
    message
}

/// Longest datagram that the asker takes.
pub(crate) fn datagram_limit(question: &Message) -> usize {
    usize::from(question.max_payload().clamp(512, PAYLOAD_BYTES))
}

/// The bytes; with a limit, as many records as fit, and the truncation bit where some didn't. Some resolvers never ask
/// again over TCP, so a part is better than nothing.
pub(crate) fn encode(mut message: Message, limit: Option<usize>) -> Option<Vec<u8>> {
    let bytes = message.to_vec().ok()?;
    let Some(limit) = limit else { return Some(bytes) };
    if bytes.len() <= limit {
        return Some(bytes);
    }
    message.additionals.clear();
    let mut bytes = message.to_vec().ok()?;
    while bytes.len() > limit && !message.answers.is_empty() {
        message.metadata.truncation = true;
        let keep = message.answers.len() * limit / bytes.len();
        message.answers.truncate(keep.min(message.answers.len() - 1));
        message.authorities.clear();
        bytes = message.to_vec().ok()?;
    }
    (bytes.len() <= limit).then_some(bytes)
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use hickory_proto::op::Query;
    use hickory_proto::rr::rdata::A;
    use hickory_proto::rr::{Name, RData, RecordType};
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_does_not_fit_is_cut_and_says_so() {
        let name = Name::from_ascii("db.default.svc.cluster.local.").unwrap();
        let mut question = Message::query();
        question.add_query(Query::query(name.clone(), RecordType::A));
        let record =
            |n: u8| Record::from_rdata(name.clone(), 5, RData::A(A(Ipv4Addr::new(10, 244, 1, n))));
        for (count, whole) in [(3u8, true), (200, false)] {
            let answer = Answer::Records((0..count).map(record).collect(), Vec::new());
            let zone = Zone::new("cluster.local", Vec::new()).unwrap();
            let message = from_zone(&question, &zone, &answer).unwrap();
            let bytes = encode(message, Some(datagram_limit(&question))).unwrap();
            assert!(bytes.len() <= 512);
            let back = Message::from_vec(&bytes).unwrap();
            assert_eq!(back.metadata.truncation, !whole);
            assert_eq!(back.answers.len() == usize::from(count), whole);
            assert!(!back.answers.is_empty());
        }
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            drop(read_question(&bytes));
        }
    }
}
