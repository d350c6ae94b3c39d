//! Tenants: no tenant can change, hide or lose the names and records of another tenant. In each scenario, one tenant
//! makes connections while another tenant attacks with its own pods, Services, annotations, sockets, network namespaces
//! or cgroups.

mod addresses;
mod all_attacks;
mod attacker;
mod cgroups;
mod cluster;
mod clusters;
mod connection;
mod drops;
mod fixture;
mod identity;
mod node;
mod objects;
mod rounds;
mod secrets;
mod services;

use crate::Topic;
use crate::support::probe::Need;

/// The needs of a scenario with pods.
const PODS: &[Need] = &[Need::Veth, Need::Cgroup2, Need::Unshare];
/// The needs of a scenario with pods and a Service.
const SERVICES: &[Need] = &[Need::Nft, Need::Veth, Need::Cgroup2, Need::Unshare];
/// The needs of a scenario with tens of megabytes of objects.
const BIG: &[Need] = &[Need::Veth, Need::Cgroup2, Need::Unshare, Need::FullSize];
/// The needs of a scenario with so many cgroups that other tracers would be slow.
const EXCLUSIVE: &[Need] = &[
    Need::Nft,
    Need::Veth,
    Need::Cgroup2,
    Need::Unshare,
    Need::FullSize,
    Need::Exclusive,
];

/// Adds a test for each function, with the function's name.
macro_rules! add_tests {
    ($topic:expr, $($needs:ident: $($module:ident::$name:ident),* $(,)?;)*) => {
        $topic $($(.standalone(stringify!($name), $needs, $module::$name))*)*
    };
}

pub fn topic() -> Topic {
    add_tests!(Topic::new("tenants"),
        PODS:
            identity::annotation_does_not_take_another_pods_identity,
            identity::annotation_does_not_take_an_identity_in_a_replay,
            identity::static_pod_is_named_by_its_second_uid,
            identity::temporary_wrong_name_does_not_exclude_a_pod,
            addresses::transparent_socket_does_not_take_an_address,
            addresses::unknown_pod_puts_an_address_in_doubt_until_the_kubelet_answers,
            addresses::unknown_pod_puts_an_address_in_doubt_until_the_api_server_answers,
            addresses::unknown_pod_puts_an_address_in_doubt_forever_with_a_pods_file,
            addresses::user_namespace_of_a_known_pod_does_not_take_an_address,
            addresses::user_namespace_of_an_unknown_pod_puts_an_address_in_doubt,
            addresses::user_namespace_outside_of_pods_does_not_take_an_address,
            services::tie_between_services_of_other_namespaces_names_no_service,
            objects::malformed_item_does_not_affect_other_items,
            objects::malformed_event_does_not_affect_other_events,
            cgroups::nested_cgroup_does_not_name_another_pod,
            cgroups::cgroup_of_a_user_does_not_name_a_pod,
            cgroups::cgroup_below_a_users_pod_directory_does_not_name_a_pod,
            clusters::two_clusters_with_the_same_addresses,
            clusters::cluster_in_a_container_beside_the_hosts_cluster,
            secrets::kubeconfig_error_prints_no_secret,
            secrets::output_of_an_exec_plugin_is_not_printed,
            secrets::service_accounts_token_is_not_sent_without_tls;
        SERVICES:
            services::service_is_named_by_the_destination_address,
            services::external_ip_does_not_take_another_services_address,
            services::load_balancer_address_does_not_take_another_services_address,
            services::endpoint_slice_of_another_namespace_does_not_take_a_pod,
            services::external_name_service_has_no_endpoints_despite_its_selector,
            drops::drop_between_pods_is_found_with_both_names,
            rounds::random_rounds;
        BIG:
            services::cost_of_a_record_does_not_grow_with_services,
            objects::large_pods_do_not_stop_names_from_the_api_server,
            objects::large_pods_do_not_stop_names_from_the_kubelet,
            objects::memory_for_labels_from_the_api_server_is_limited,
            objects::memory_for_labels_from_the_kubelet_is_limited,
            objects::empty_items_are_not_stored;
        EXCLUSIVE:
            cgroups::empty_cgroups_cost_neither_memory_nor_cpu_time,
            all_attacks::all_attacks_at_once;
    )
}
