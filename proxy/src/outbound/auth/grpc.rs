//! A question in Envoy's protocol (`envoy.service.auth.v3.Authorization/Check`), and what its answer means.

use std::time::SystemTime;

use bytes::{BufMut, Bytes, BytesMut};
use http::header::{CONTENT_TYPE, COOKIE, TE};
use http::request::Parts;
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, StatusCode, Uri, Version, response};
use outrigger_proxy_transport::authority;
use outrigger_proxy_transport::grpc::grpc_status;
use outrigger_proxy_transport::headers::{REQUEST_ID, is_reserved};
use outrigger_proxy_transport::net::HttpVersion;
use prost::Message;
use prost::encoding::{WireType, encode_key, encode_varint, encoded_len_varint, key_len};

use super::verdict::{Change, Denial, Verdict};
use super::wire::check_response::HttpResponse;
use super::wire::{
    AppendAction, AttributeContext, CheckResponse, DeniedHttpResponse, HeaderValueOption, HttpRequest, OkHttpResponse,
    Peer, Timestamp,
};
use super::{Question, listed, since_1970};
use crate::model::ServiceName;

const METHOD: &str = "/envoy.service.auth.v3.Authorization/Check";
/// A message that is not compressed, and its length (PROTOCOL-HTTP2.md, "Length-Prefixed-Message").
const PREFIX: usize = 5;
/// Numbers of fields: `CheckRequest.attributes`, `AttributeContext.request`, `Request.http`, `HttpRequest.body` and `raw_body`.
const ATTRIBUTES: u32 = 1;
const REQUEST: u32 = 4;
const HTTP: u32 = 2;
const BODY: u32 = 11;
const RAW_BODY: u32 = 12;

/// What is said of a request beside itself.
pub(super) struct Facts {
    /// This pod's SPIFFE ID.
    pub(super) caller: Option<String>,
    /// What is called.
    pub(super) service: String,
    pub(super) now: SystemTime,
}

/// About a request. `headers`: those that are told, `None` all.
pub(super) fn question(
    headers: Option<&[HeaderName]>,
    head: &Parts,
    body: Option<Bytes>,
    facts: Facts,
    asked: &ServiceName,
) -> Question {
    let bytes = message(attributes(headers, head, body.as_ref()), body.as_ref(), facts);
    let mut request = Request::new(());
    *request.method_mut() = Method::POST;
    *request.version_mut() = Version::HTTP_2;
    let target = Uri::builder()
        .scheme("http")
        .authority(asked.to_string())
        .path_and_query(METHOD);
    // Names of Services make an authority; where one did not, the endpoint's address would be it.
    *request.uri_mut() = target.build().unwrap_or_else(|_| Uri::from_static(METHOD));
    let (mut head, ()) = request.into_parts();
    head.headers
        .insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    head.headers.insert(TE, HeaderValue::from_static("trailers"));
    Question {
        head,
        // It counts among the bodies that were read ahead, and is not copied.
        body: [bytes, body.unwrap_or_default()],
        version: HttpVersion::Http2,
    }
}

/// All of the message but the bytes of the body, which are its last field: of each message, the one that has them is written last.
fn message(http: HttpRequest, body: Option<&Bytes>, facts: Facts) -> Bytes {
    let body = body.filter(|body| !body.is_empty());
    // In a field that has to be UTF-8, or in the one for all other.
    let body = body.map(|body| match std::str::from_utf8(body) {
        Ok(_) => (BODY, body.len()),
        Err(_) => (RAW_BODY, body.len()),
    });
    let request = super::wire::Request {
        time: Some(timestamp(facts.now)),
        http: None,
    };
    let context = AttributeContext {
        source: Some(Peer {
            principal: facts.caller.unwrap_or_default(),
            ..Peer::default()
        }),
        destination: Some(Peer {
            service: facts.service,
            ..Peer::default()
        }),
        request: None,
    };
    let of_http = http.encoded_len() + body.map_or(0, |(tag, length)| field(tag, length));
    let of_request = request.encoded_len() + field(HTTP, of_http);
    let of_context = context.encoded_len() + field(REQUEST, of_request);
    let length = field(ATTRIBUTES, of_context);
    let mut bytes = BytesMut::with_capacity(PREFIX + length - body.map_or(0, |(_, length)| length));
    bytes.put_u8(0);
    // A head of 64 KiB and a body of 1 MiB at most.
    bytes.put_u32(u32::try_from(length).unwrap_or(u32::MAX));
    begin(ATTRIBUTES, of_context, &mut bytes);
    context.encode_raw(&mut bytes);
    begin(REQUEST, of_request, &mut bytes);
    request.encode_raw(&mut bytes);
    begin(HTTP, of_http, &mut bytes);
    http.encode_raw(&mut bytes);
    if let Some((tag, length)) = body {
        begin(tag, length, &mut bytes);
    }
    bytes.freeze()
}

/// How many bytes a field with a length has.
fn field(tag: u32, length: usize) -> usize {
    key_len(tag) + encoded_len_varint(length as u64) + length
}

/// What is before the bytes of a field with a length.
fn begin(tag: u32, length: usize, bytes: &mut BytesMut) {
    encode_key(tag, WireType::LengthDelimited, bytes);
    encode_varint(length as u64, bytes);
}

/// Without the body.
fn attributes(headers: Option<&[HeaderName]>, head: &Parts, body: Option<&Bytes>) -> HttpRequest {
    let told = listed(headers, &head.headers).filter(|name| head.headers.contains_key(*name));
    let size = body.map_or(-1, |body| i64::try_from(body.len()).unwrap_or(-1));
    let id = head.headers.get(REQUEST_ID).and_then(|id| id.to_str().ok());
    HttpRequest {
        id: id.unwrap_or_default().to_owned(),
        method: head.method.to_string(),
        headers: told
            .map(|name| (name.to_string(), joined(name, &head.headers)))
            .collect(),
        path: head.uri.path_and_query().map_or("", PathAndQuery::as_str).to_owned(),
        host: authority::of(head).to_owned(),
        scheme: "http".to_owned(),
        size,
        protocol: match head.version {
            Version::HTTP_2 => "HTTP/2",
            Version::HTTP_10 => "HTTP/1.0",
            _ => "HTTP/1.1",
        }
        .to_owned(),
        body: String::new(),
        raw_body: Vec::new(),
    }
}

/// The values of all lines (RFC 9110 section 5.3; of cookies, RFC 6265 section 4.2.1). Bytes that are no UTF-8 are replaced: the field has none.
fn joined(name: &HeaderName, headers: &HeaderMap) -> String {
    let lines: Vec<&[u8]> = headers.get_all(name).iter().map(HeaderValue::as_bytes).collect();
    let between: &[u8] = if *name == COOKIE { b"; " } else { b"," };
    String::from_utf8_lossy(&lines.join(between)).into_owned()
}

fn timestamp(now: SystemTime) -> Timestamp {
    let since = since_1970(now);
    Timestamp {
        seconds: i64::try_from(since.as_secs()).unwrap_or_default(),
        // Below 1,000,000,000.
        nanos: i32::try_from(since.subsec_nanos()).unwrap_or_default(),
    }
}

/// What an answer means.
///
/// # Errors
/// Why it means nothing.
pub(super) fn verdict(head: &response::Parts, body: &[u8], trailers: &HeaderMap) -> Result<Verdict, String> {
    if head.status != StatusCode::OK {
        return Err(format!("it answers {}, which is none of gRPC", head.status));
    }
    match grpc_status(trailers).or_else(|| grpc_status(&head.headers)) {
        Some(0) => {}
        Some(status) => return Err(format!("its gRPC status is {status}")),
        None => return Err("it has no gRPC status".to_owned()),
    }
    let Some((prefix, message)) = body.split_first_chunk::<PREFIX>() else {
        return Err("there is no message in its answer".to_owned());
    };
    let [compressed, length @ ..] = prefix;
    if *compressed != 0 || usize::try_from(u32::from_be_bytes(*length)) != Ok(message.len()) {
        return Err("its answer is compressed, or more than one message".to_owned());
    }
    let answer = CheckResponse::decode(message).map_err(|error| format!("its answer cannot be read: {error}"))?;
    // An empty message says nothing, though a code that is not written is 0 as well.
    let status = answer.status.ok_or("its answer has no status")?;
    match (status.code, answer.http_response) {
        (0, None) => Ok(Verdict::Admitted(Vec::new())),
        (0, Some(HttpResponse::OkResponse(ok))) => changes(ok).map(Verdict::Admitted),
        (0, Some(HttpResponse::DeniedResponse(_))) => Err("its answer says both yes and no".to_owned()),
        (_, Some(HttpResponse::DeniedResponse(denied))) => Ok(Verdict::Denied(denial(denied))),
        (_, _) => Ok(Verdict::Denied(denial(DeniedHttpResponse::default()))),
    }
}

fn changes(ok: OkHttpResponse) -> Result<Vec<Change>, String> {
    if !ok.query_parameters_to_set.is_empty() || !ok.query_parameters_to_remove.is_empty() {
        // What lets a request through in another form does not let it through in this one.
        return Err("its answer changes the query, which is not supported".to_owned());
    }
    let mut changes = Vec::new();
    for option in ok.headers {
        let action = action(&option);
        let (name, value) = header(option).ok_or("its answer has a header that is none")?;
        if is_reserved(&name) {
            continue;
        }
        changes.push(match action {
            Action::Append => Change::Append(name, value),
            Action::Set => Change::Set(name, value),
            Action::Replace => Change::Replace(name, value),
            Action::Default => Change::Default(name, value),
        });
    }
    for name in ok.headers_to_remove {
        // Pseudo headers, for instance, are passed over: a request cannot be without.
        let name = HeaderName::from_bytes(name.as_bytes())
            .ok()
            .filter(|name| !is_reserved(name));
        changes.extend(name.map(Change::Remove));
    }
    Ok(changes)
}

fn denial(denied: DeniedHttpResponse) -> Denial {
    let status = denied.status.and_then(|status| u16::try_from(status.code).ok());
    let mut headers = HeaderMap::new();
    for option in denied.headers {
        let action = action(&option);
        // One that is none changes nothing about a denial.
        let Some((name, value)) = header(option) else { continue };
        match action {
            Action::Append => drop(headers.append(name, value)),
            _ => drop(headers.insert(name, value)),
        }
    }
    Denial {
        status: Denial::status(status.and_then(|status| StatusCode::from_u16(status).ok())),
        headers,
        body: Some(denied.body.into()),
    }
}

enum Action {
    Append,
    Set,
    Replace,
    Default,
}

/// Where nothing is said, or `append: false`, it takes the place of what is there (OkHttpResponse.headers).
fn action(option: &HeaderValueOption) -> Action {
    match (&option.append, option.append_action()) {
        (Some(append), _) if append.value => Action::Append,
        (Some(_), _) => Action::Set,
        (None, AppendAction::AddIfAbsent) => Action::Default,
        (None, AppendAction::OverwriteIfExists) => Action::Replace,
        (None, AppendAction::AppendIfExistsOrAdd | AppendAction::OverwriteIfExistsOrAdd) => Action::Set,
    }
}

fn header(option: HeaderValueOption) -> Option<(HeaderName, HeaderValue)> {
    let header = option.header?;
    let value = match header.value.is_empty() {
        true => header.raw_value,
        false => header.value.into_bytes(),
    };
    let name = HeaderName::from_bytes(header.key.as_bytes()).ok()?;
    Some((name, HeaderValue::try_from(value).ok()?))
}
