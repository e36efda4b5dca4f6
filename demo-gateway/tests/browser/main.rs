//! The dashboard as people see it: a real browser in front of the program, with backends that fail and callers who ask.

#![allow(
    clippy::unwrap_used,
    reason = "what a test is helped by may fail as it does"
)]

mod cdp;
mod wire;
mod world;

use std::time::Duration;

use cdp::{Browser, Page};
use world::{Gateway, Load, TOKEN, backend, check_access, check_fit, check_quiet};

const SOON: Duration = Duration::from_secs(20);

/// Until figures come.
async fn comes_alive(page: &Page) {
    let live = "document.querySelector('#main').dataset.feed === 'live'";
    page.until("the feed is live", live, SOON).await;
}

fn state_is(endpoint: &str, words: &[&str]) -> String {
    format!(
        "{words:?}.includes(document.querySelector('[data-endpoint=\"{endpoint}\"] [data-f=state]')?.textContent)"
    )
}

/// Every width and both colours: nothing sticks out, and nobody is left out.
async fn look_over(page: &Page, name: &str) {
    for scheme in ["light", "dark"] {
        page.prefers(scheme).await;
        for (width, height) in [(375, 812), (1440, 900)] {
            page.resize(width, height).await;
            // The plots are drawn anew.
            page.eval(
                "new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))",
            )
            .await;
            let view = format!("{name}-{scheme}-{width}");
            check_fit(page, &view).await;
            check_access(page, &view).await;
            page.eval("scrollTo(0, 0)").await;
            page.shoot(&view).await;
        }
    }
    for width in [320, 600, 900, 1250, 1920, 2560] {
        page.resize(width, 900).await;
        check_fit(page, &format!("{name}-{width}")).await;
    }
    page.resize(1440, 900).await;
    page.prefers("light").await;
}

#[tokio::test]
async fn a_backend_that_is_killed_turns_red_and_comes_back() {
    let backends = [
        backend("gpu-1").await,
        backend("gpu-2").await,
        backend("gpu-3").await,
    ];
    let gateway = Gateway::start(
        &[&backends[0], &backends[1], &backends[2]],
        "rate_limit = \"off\"",
    )
    .await;
    let load = Load::start(&gateway.url, 6);
    let browser = Browser::start("killed").await;
    let page = browser.page(1440, 900).await;
    page.open(&gateway.url).await;
    comes_alive(&page).await;
    let healthy = "document.querySelector('#word').textContent === 'Healthy'";
    page.until("all is well", healthy, SOON).await;
    page.until(
        "there are requests",
        "document.querySelectorAll('#request-rows tr').length > 5",
        SOON,
    )
    .await;
    look_over(&page, "healthy").await;

    backends[1].crash().await;
    let red = format!(
        "document.querySelector('[data-endpoint=\"gpu-2\"]').dataset.tone === 'bad' && {}",
        state_is("gpu-2", &["Ejected", "Unhealthy"])
    );
    page.until("it is red, and says so", &red, Duration::from_secs(5))
        .await;
    let degraded = "document.querySelector('#word').textContent === 'Degraded' && document.querySelector('#why').textContent.includes('gpu-2')";
    page.until("the verdict names it", degraded, SOON).await;
    assert!(page.text("#check-endpoints b").await.contains("2 of 3"));
    look_over(&page, "incident").await;

    backends[1].restart().await.unwrap();
    page.until(
        "it is back",
        &state_is("gpu-2", &["Serving", "Slow start"]),
        SOON,
    )
    .await;
    page.until("all is well again", healthy, SOON).await;

    load.stop().await;
    let total = gateway.counted().await;
    assert!(total > 100, "{total}");
    let same = format!("document.querySelector('#gateway').dataset.total === '{total}'");
    page.until(
        "the page counts as the metrics do",
        &same,
        Duration::from_secs(2),
    )
    .await;
    check_quiet(&page, &gateway.url);
}

#[tokio::test]
async fn draining_takes_the_token_and_is_refused_without() {
    let backends = [backend("gpu-1").await, backend("gpu-2").await];
    let gateway = Gateway::start(&[&backends[0], &backends[1]], "rate_limit = \"off\"").await;
    let load = Load::start(&gateway.url, 2);
    let browser = Browser::start("drain").await;
    let page = browser.page(1440, 900).await;
    page.open(&gateway.url).await;
    comes_alive(&page).await;
    let says = |text: &str| {
        format!("document.querySelector('#sheet-result').textContent.includes({text:?})")
    };

    page.click("[data-endpoint=\"gpu-1\"] button").await;
    page.until(
        "the sheet is open",
        "document.querySelector('#sheet').open",
        SOON,
    )
    .await;
    check_access(&page, "sheet").await;
    page.click("#act-drain").await;
    page.until("it asks", "document.querySelector('#ask').open", SOON)
        .await;
    check_access(&page, "ask").await;
    page.shoot("ask").await;
    // Nothing is sent without one.
    page.press("Escape").await;
    page.until("it says so", &says("no token given"), SOON)
        .await;
    assert_eq!(
        page.eval(&state_is("gpu-1", &["Serving", "Slow start"]))
            .await,
        true
    );

    page.click("#act-drain").await;
    page.until("it asks again", "document.querySelector('#ask').open", SOON)
        .await;
    page.type_text("not-the-token").await;
    page.press("Enter").await;
    page.until("it is refused", &says("Refused (401)"), SOON)
        .await;
    let why = "document.querySelector('#ask').open && document.querySelector('#ask-why').textContent.includes('refused that token')";
    page.until("it asks for another", why, SOON).await;
    assert_eq!(
        page.eval(&state_is("gpu-1", &["Serving", "Slow start"]))
            .await,
        true
    );

    page.type_text(TOKEN).await;
    page.press("Enter").await;
    page.until("it is done", &says("draining"), SOON).await;
    page.until("the row says so", &state_is("gpu-1", &["Draining"]), SOON)
        .await;
    // Asked once: the next change needs no token.
    let back = "document.querySelector('#act-drain').textContent === 'Put back'";
    page.until("it can be put back", back, SOON).await;
    page.click("#act-drain").await;
    page.until(
        "it is back",
        &state_is("gpu-1", &["Serving", "Slow start"]),
        SOON,
    )
    .await;
    page.click("[data-breaker=open]").await;
    page.until("it is held open", &says("held open"), SOON)
        .await;
    let held = "document.querySelector('[data-endpoint=\"gpu-1\"] [data-f=breaker]').textContent === 'held open'";
    page.until("the row says that", held, SOON).await;
    page.shoot("sheet").await;
    page.click("[data-breaker=auto]").await;
    page.until("it is let go", &says("automatic"), SOON).await;
    page.press("Escape").await;
    load.stop().await;
    check_quiet(&page, &gateway.url);
}

#[tokio::test]
async fn who_is_over_a_limit_is_shown_with_the_reason_and_let_go_by_a_press() {
    let backend = backend("gpu-1").await;
    let rules = "[[rate_limits]]\nname = \"per_user\"\nidentifier = \"user\"\nmax_requests = 5\nwindow = \"10m\"\n";
    let gateway = Gateway::start(&[&backend], rules).await;
    let load = Load::start(&gateway.url, 2);
    let browser = Browser::start("limits").await;
    let page = browser.page(375, 812).await;
    page.open(&gateway.url).await;
    comes_alive(&page).await;
    let over = "[...document.querySelectorAll('#limit-rows li')].some(li => li.textContent.includes('user:alice') && li.textContent.includes('over'))";
    page.until("the caller is over", over, SOON).await;
    let why = "[...document.querySelectorAll('#request-rows tr')].some(tr => tr.textContent.includes('429 rejected') && tr.textContent.includes('per_user'))";
    page.until("the reason is told", why, SOON).await;
    // On a phone as well.
    check_fit(&page, "limits-375").await;
    check_access(&page, "limits-375").await;
    page.shoot("limits-375").await;
    assert_eq!(
        page.eval("document.querySelector('#strategy').checkVisibility()")
            .await,
        true
    );
    load.stop().await;

    page.click("#limit-rows li button").await;
    page.until("it asks", "document.querySelector('#ask').open", SOON)
        .await;
    page.type_text(TOKEN).await;
    page.press("Enter").await;
    let done =
        "document.querySelector('#toast').textContent.includes('Rate limit reset for user:')";
    page.until("it is done", done, SOON).await;
    check_quiet(&page, &gateway.url);
}

#[tokio::test]
async fn before_the_first_request_it_says_what_to_paste_and_without_a_gateway_that_it_is_stale() {
    let backend = backend("gpu-1").await;
    let gateway = Gateway::start(&[&backend], "").await;
    let (url, address) = (gateway.url.clone(), gateway.address().to_owned());
    let browser = Browser::start("first").await;
    let page = browser.page(1440, 900).await;
    page.open(&url).await;
    comes_alive(&page).await;
    let first = "document.querySelector('#first').checkVisibility() && document.querySelector('#word').textContent === 'Ready'";
    page.until("the help is there", first, SOON).await;
    assert!(
        page.text("#pastes code")
            .await
            .contains(&format!("curl {url}/generate"))
    );
    look_over(&page, "first-run").await;
    // By keys alone: past all that stands before them to the endpoints, and on into the first one.
    page.press("Tab").await;
    assert_eq!(page.eval("document.activeElement.className").await, "skip");
    page.press("Enter").await;
    assert_eq!(page.eval("location.hash").await, "#endpoints");
    for _ in 0..2 {
        page.press("Tab").await;
    }
    page.press("Enter").await;
    page.until(
        "the sheet is open",
        "document.querySelector('#sheet').open",
        SOON,
    )
    .await;
    page.press("Escape").await;
    page.until(
        "it is closed",
        "!document.querySelector('#sheet').open",
        SOON,
    )
    .await;
    let load = Load::start(&url, 1);
    let alive = "document.querySelector('#first').hidden && document.querySelector('#plots').checkVisibility()";
    page.until("the plots are there", alive, SOON).await;
    load.stop().await;

    // Whoever only watches does not keep it from stopping.
    let took = gateway.stop().await;
    assert!(took < Duration::from_secs(10), "{took:?}");
    let stale = "document.querySelector('#main').dataset.feed === 'stale' && document.querySelector('#word').textContent === 'Unknown' && document.querySelector('#reconnect').checkVisibility()";
    page.until("it is stale", stale, SOON).await;
    // The last that was heard stays readable, also on a phone.
    page.resize(375, 812).await;
    let whole = "(() => { const f = document.querySelector('#feed'), b = document.querySelector('#reconnect').getBoundingClientRect();
        return f.scrollWidth <= f.clientWidth && f.getBoundingClientRect().right <= b.left && b.right <= innerWidth; })()";
    assert_eq!(page.eval(whole).await, true);
    look_over(&page, "stale").await;

    let gateway = Gateway::start_at(&address, &[&backend], "").await;
    page.click("#reconnect").await;
    comes_alive(&page).await;
    page.until(
        "the verdict is back",
        "document.querySelector('#word').textContent === 'Ready'",
        SOON,
    )
    .await;
    check_quiet(&page, &gateway.url);
}
