//! Owns the service `Cluster`: one member, this master.

use crate::grpc::messages::cluster::{Member, MemberListRequest, MemberListResponse};
use crate::grpc::refusal::Refusal;
use crate::grpc::{Identity, Services};

impl Services {
    pub(super) async fn member_list(
        &self,
        _: MemberListRequest,
    ) -> Result<MemberListResponse, Refusal> {
        let Identity { member_id, name, client_urls, .. } = self.inner.identity.clone();
        let own = Member { id: member_id, name, client_urls, ..Member::default() };
        Ok(MemberListResponse { header: self.header_now(), members: vec![own] })
    }
}
