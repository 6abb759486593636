//! `deletecollection`: deletes what the selectors match, one by one. Must not go on after an error that is not "gone already".

use apimachinery::status::ApiError;
use http::{Response, StatusCode};
use serde_json::json;

use super::{
    Call,
    delete::{self, DeleteOptions},
    list,
};
use crate::{body::Body, filter::Filter, key, respond, view::View};

pub(crate) async fn run(call: &Call, body: Body) -> Result<Response<Body>, ApiError> {
    let options = DeleteOptions::read(call, body).await?;
    let filter = Filter::parse(&call.resource, &call.query, "")?;
    let page = list::all(call, &filter)?;
    let view = View { resource: call.resource.clone(), form: call.form };
    let mut items = Vec::new();
    for entry in &page.entries {
        let Some(parsed) = key::parse(call.server.table(), &entry.key) else { continue };
        match delete::delete(call, parsed.namespace, parsed.name, &options).await {
            Ok(deleted) => items.push(deleted.into_object()),
            Err(error) if error.code == 404 => {}
            Err(error) => return Err(error),
        }
    }
    let revision = call.server.registry().store().revision();
    let list = view.list_of(items, &json!({"resourceVersion": revision.to_string()}));
    Ok(respond::value(&call.answer, StatusCode::OK, &list))
}
