//! Tenants: nobody may choose, hide or lose another tenant's name or record. Each scenario has the traffic of one tenant beside
//! what another tenant of the cluster can do: its own pods, Services, annotations, sockets, network namespaces and cgroups.

mod addresses;
mod all_at_once;
mod attacker;
mod cgroups;
mod cluster;
mod clusters;
mod forward;
mod identity;
mod node;
mod objects;
mod rounds;
mod secrets;
mod services;
mod traffic;

use crate::Topic;
use crate::support::probe::Need;

/// What pods need.
const PODS: &[Need] = &[Need::Veth, Need::Cgroup2, Need::Unshare];
/// What pods behind a Service need.
const SERVICES: &[Need] = &[Need::Nft, Need::Veth, Need::Cgroup2, Need::Unshare];
/// What a scenario of tens of megabytes needs.
const BIG: &[Need] = &[Need::Veth, Need::Cgroup2, Need::Unshare, Need::FullSize];
/// What a scenario needs that makes more cgroups than other tracers would bear.
const ALONE: &[Need] = &[
    Need::Nft,
    Need::Veth,
    Need::Cgroup2,
    Need::Unshare,
    Need::FullSize,
    Need::Exclusive,
];

/// Adds a trial for each function, named after it.
macro_rules! trials {
    ($table:expr, $($needs:ident: $($module:ident::$name:ident),* $(,)?;)*) => {
        $table $($(.standalone(stringify!($name), $needs, $module::$name))*)*
    };
}

/// The trials.
pub fn topic() -> Topic {
    trials!(Topic::new("tenants"),
        PODS:
            identity::annotation_does_not_take_another_pods_identity,
            identity::annotation_does_not_take_an_identity_in_a_replay,
            identity::static_pod_is_named_by_its_second_uid,
            identity::wrong_name_of_a_moment_does_not_exclude_a_pod,
            addresses::transparent_socket_does_not_take_an_address,
            addresses::unknown_pod_puts_an_address_in_doubt_until_the_kubelet_answers,
            addresses::unknown_pod_puts_an_address_in_doubt_until_the_api_server_answers,
            addresses::unknown_pod_puts_an_address_in_doubt_for_good_where_a_file_is_the_source,
            addresses::user_namespace_of_a_known_pod_does_not_take_an_address,
            addresses::user_namespace_of_an_unknown_pod_puts_an_address_in_doubt,
            addresses::user_namespace_outside_of_pods_does_not_take_an_address,
            services::services_of_two_other_namespaces_name_nobody,
            objects::odd_item_costs_only_itself,
            objects::odd_event_costs_only_itself,
            cgroups::nested_cgroup_does_not_name_another_pod,
            cgroups::cgroup_of_a_user_does_not_name_a_pod,
            cgroups::cgroup_below_a_users_pod_directory_does_not_name_a_pod,
            clusters::two_clusters_with_the_same_addresses,
            clusters::cluster_in_a_container_beside_the_machines_own,
            secrets::kubeconfig_error_prints_no_secret,
            secrets::output_of_an_exec_plugin_is_not_printed,
            secrets::service_accounts_token_is_not_sent_without_tls;
        SERVICES:
            services::services_are_named_by_what_was_dialled,
            services::external_ip_does_not_take_another_services_address,
            services::load_balancer_address_does_not_take_another_services_address,
            services::endpoint_slice_of_another_namespace_does_not_take_a_pod,
            services::external_name_has_no_endpoints_whatever_its_selector,
            forward::drop_between_pods_is_found_with_both_names,
            rounds::random_rounds;
        BIG:
            services::cost_of_a_record_does_not_grow_with_services,
            objects::large_pods_do_not_end_the_names_of_an_api_server,
            objects::large_pods_do_not_end_the_names_of_a_kubelet,
            objects::labels_of_an_api_servers_pods_are_bounded,
            objects::labels_of_a_kubelets_pods_are_bounded,
            objects::items_that_are_nothing_are_not_stored;
        ALONE:
            cgroups::empty_cgroups_cost_nobody_anything,
            all_at_once::all_at_once;
    )
}
