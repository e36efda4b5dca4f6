use http::Request;

use super::*;

fn find(trusted: &[&str], peer: &str, name: &str, values: &[&str]) -> Option<String> {
    let client = client_address(trusted.iter().map(|text| text.parse().unwrap()));
    let headers: Vec<_> = values.iter().map(|value| (name, *value)).collect();
    find_by(&client, peer, &headers)
}

fn find_by(client: &ClientAddress, peer: &str, headers: &[(&str, &str)]) -> Option<String> {
    let mut request = Request::builder();
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let mut request = request.body(()).unwrap();
    let peer = SocketAddr::new(peer.parse().unwrap(), 999);
    request.extensions_mut().insert(PeerAddr(peer));
    client
        .find(&(&request).into())
        .map(|address| address.to_string())
}

#[test]
fn a_stranger_is_not_believed() {
    let found = find(
        &["10.0.0.0/8"],
        "192.0.2.1",
        "x-forwarded-for",
        &["6.6.6.6"],
    );
    assert_eq!(found.as_deref(), Some("192.0.2.1"));
    let found = find(&[], "127.0.0.1", "x-forwarded-for", &["6.6.6.6"]);
    assert_eq!(found.as_deref(), Some("127.0.0.1"));
}

#[test]
fn the_walk_ends_at_the_first_that_is_not_trusted_and_never_at_the_leftmost_blindly() {
    let trusted = ["10.0.0.0/8", "::1"];
    for (name, values, client) in [
        (
            "x-forwarded-for",
            vec!["6.6.6.6, 192.0.2.9, 10.1.1.1"],
            "192.0.2.9",
        ),
        (
            "x-forwarded-for",
            vec!["6.6.6.6", "192.0.2.9:80", "10.1.1.1"],
            "192.0.2.9",
        ),
        ("x-forwarded-for", vec!["10.2.2.2, 10.1.1.1"], "10.2.2.2"),
        (
            "x-forwarded-for",
            vec!["1.2.3.4, nonsense, 10.1.1.1"],
            "10.1.1.1",
        ),
        ("x-forwarded-for", vec!["[2001:db8::1]:80"], "2001:db8::1"),
        (
            "forwarded",
            vec!["for=6.6.6.6, For=\"[2001:db8::2]\";proto=https"],
            "2001:db8::2",
        ),
        ("forwarded", vec!["for=_hidden"], "10.0.0.1"),
    ] {
        let found = find(&trusted, "10.0.0.1", name, &values);
        assert_eq!(found.as_deref(), Some(client), "{values:?}");
    }
}

#[test]
fn behind_proxies_the_client_is_so_many_from_the_right_and_never_beyond() {
    let list = "6.6.6.6, 1.1.1.1, 2.2.2.2";
    for (proxies, values, client) in [
        (0, vec![list], "9.9.9.9"),
        (1, vec![list], "2.2.2.2"),
        (2, vec![list], "1.1.1.1"),
        (3, vec![list], "6.6.6.6"),
        (4, vec![list], "6.6.6.6"),
        (usize::MAX, vec![list], "6.6.6.6"),
        (2, vec!["6.6.6.6, 1.1.1.1", "2.2.2.2"], "1.1.1.1"),
        (2, vec![], "9.9.9.9"),
        (2, vec!["6.6.6.6, unknown, 2.2.2.2"], "2.2.2.2"),
        (3, vec!["6.6.6.6, unknown, 2.2.2.2"], "2.2.2.2"),
        (2, vec!["6.6.6.6, , 2.2.2.2"], "2.2.2.2"),
    ] {
        let headers: Vec<_> = values.iter().map(|v| ("x-forwarded-for", *v)).collect();
        let found = find_by(&client_address_behind(proxies), "9.9.9.9", &headers);
        assert_eq!(found.as_deref(), Some(client), "{proxies} {values:?}");
    }
}

#[test]
fn pieces_of_a_quoted_text_are_no_hops_that_could_be_counted() {
    // What the outer of two proxies writes for `Host: a, for=6.6.6.6, b`.
    let forwarded = "for=1.1.1.1;host=\"a, for=6.6.6.6, b\", for=2.2.2.2";
    for proxies in 2..6 {
        let client = client_address_behind(proxies);
        let found = find_by(&client, "9.9.9.9", &[("forwarded", forwarded)]);
        assert_eq!(found.as_deref(), Some("2.2.2.2"), "{proxies}");
    }
}

#[test]
fn a_header_that_the_proxies_do_not_write_is_not_read() {
    let headers = [
        ("x-forwarded-for", "6.6.6.6"),
        ("forwarded", "for=192.0.2.9"),
    ];
    let any = client_address(["10.0.0.0/8".parse().unwrap()]);
    let (plain, standard) = (ForwardedBy::XForwardedFor, ForwardedBy::Forwarded);
    for (client, headers, found) in [
        (any.clone(), &headers[..], "6.6.6.6"),
        (any.clone().header(plain), &headers[..], "6.6.6.6"),
        (any.clone().header(standard), &headers[..], "192.0.2.9"),
        (any.clone().header(standard), &headers[..1], "10.0.0.1"),
        (any.header(plain), &headers[1..], "10.0.0.1"),
        (
            client_address_behind(1).header(standard),
            &headers[..1],
            "10.0.0.1",
        ),
    ] {
        let address = find_by(&client, "10.0.0.1", headers);
        assert_eq!(address.as_deref(), Some(found), "{client:?} {headers:?}");
    }
}

#[test]
fn so_many_bits_of_an_ipv6_address_and_all_of_an_ipv4_one_are_the_key() {
    let same = |bits, a: &str, b: &str| {
        let client = peer().ipv6_prefix(bits);
        client.key_of(a.parse().unwrap()) == client.key_of(b.parse().unwrap())
    };
    for bits in 0..=128u8 {
        let one: u128 = 0x2001_0db8_aaaa_5555_aaaa_5555_aaaa_5555;
        let text = |number: u128| Ipv6Addr::from(number).to_string();
        if let Some(last) = bits.checked_sub(1) {
            let other = one ^ 1 << (127 - last);
            assert!(!same(bits, &text(one), &text(other)), "{bits}");
        }
        if bits < 128 {
            let other = one ^ 1 << (127 - bits);
            assert!(same(bits, &text(one), &text(other)), "{bits}");
        }
        assert!(!same(bits, "192.0.2.1", "192.0.2.2"), "{bits}");
    }
    assert!(!same(255, "2001:db8::1", "2001:db8::2"));
    let default: IpAddr = "2001:db8:1:2:3::4".parse().unwrap();
    assert_eq!(peer().key_of(default), Key::from(default));
}

#[test]
fn a_mapped_address_is_the_one_it_maps() {
    let found = find(
        &["10.0.0.0/8"],
        "::ffff:10.0.0.1",
        "x-forwarded-for",
        &["192.0.2.9"],
    );
    assert_eq!(found.as_deref(), Some("192.0.2.9"));
}

#[test]
fn addresses_of_one_ipv6_site_share_a_key() {
    let key = |text: &str| Key::from(text.parse::<IpAddr>().unwrap());
    assert_eq!(key("2001:db8:1:2:3::4"), key("2001:db8:1:2::9"));
    assert_ne!(key("2001:db8:1:2::9"), key("2001:db8:1:3::9"));
    assert_eq!(key("::ffff:192.0.2.1"), key("192.0.2.1"));
}

#[test]
fn a_network_of_no_bits_is_everybody_and_wrong_ones_say_so() {
    let all: Network = "0.0.0.0/0".parse().unwrap();
    assert!(all.contains("1.2.3.4".parse().unwrap()));
    for text in ["", "10.0.0.0/33", "10.0.0.0/", "10.0.0/8", "::/129", "host"] {
        let error = text.parse::<Network>().unwrap_err();
        assert!(error.to_string().contains("10.0.0.0/8"), "{error}");
    }
}
