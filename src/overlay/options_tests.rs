use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;

use super::*;

fn options(lowers: &[&[u8]]) -> Options {
    Options {
        lowers: lowers.iter().map(|p| PathBuf::from(OsString::from_vec(p.to_vec()))).collect(),
        upper: Some("/u".into()),
        work: Some("/w".into()),
        userxattr: true,
        user_namespace: true,
        ..Options::default()
    }
}

fn shown(plan: &Plan) -> Vec<String> {
    let show = |call: &Call| {
        let key = call.key.to_str().unwrap();
        call.value.as_ref().map_or(key.to_owned(), |v| format!("{key}={}", v.to_string_lossy()))
    };
    plan.calls.iter().map(show).collect()
}

fn spec_error(options: &Options) -> String {
    match options.plan(Method::Append, 100).unwrap_err() {
        Error::Spec { message } => message,
        other => panic!("{other:?}"),
    }
}

#[test]
fn append_escapes_the_upper_but_not_the_lowers() {
    let mut o = options(&[b"/a:b,c\\d", b"/e\nf"]);
    o.upper = Some("/u:,\\".into());
    let plan = o.plan(Method::Append, 100).unwrap();
    let expected = [
        "source=overlay",
        "lowerdir+=/a:b,c\\d",
        "lowerdir+=/e\nf",
        "upperdir=/u\\:,\\\\",
        "workdir=/w",
        "userxattr",
        "index=off",
    ];
    assert_eq!(shown(&plan), expected);
    assert!(plan.opens.is_empty());
}

#[test]
fn join_escapes_colons_and_leaves_commas_to_mount2() {
    let plan = options(&[b"/a:b", b"/c\\d"]).plan(Method::Join, 100).unwrap();
    assert_eq!(plan.method, Method::Join);
    assert_eq!(shown(&plan)[..3], ["source=overlay", "lowerdir=/a\\:b:/c\\\\d", "upperdir=/u"]);
    let plan = options(&[b"/a,b", b"/c"]).plan(Method::Join, 100).unwrap();
    assert_eq!(plan.method, Method::Mount2);
    assert_eq!(plan.data.to_str().unwrap(), "lowerdir=/a\\,b:/c,upperdir=/u,workdir=/w,userxattr,index=off");
}

#[test]
fn long_paths_go_by_descriptor() {
    let (fits, long) = (vec![b'x'; MAX_VALUE], vec![b'y'; MAX_VALUE + 1]);
    let plan = options(&[&fits, &long, b"/z"]).plan(Method::Append, 100).unwrap();
    assert_eq!(plan.opens, [Open { path: CString::new(long).unwrap(), fd: 100 }]);
    let by_fd: Vec<bool> = plan.calls.iter().map(|c| c.by_fd).collect();
    assert_eq!(by_fd[..4], [false, false, true, false]);
    assert_eq!(shown(&plan)[2], "lowerdir+=/proc/self/fd/100");
}

#[test]
fn a_page_is_filled_before_descriptors_are_used() {
    let paths: Vec<Vec<u8>> = (0..60).map(|i| format!("/{i:0>80}").into_bytes()).collect();
    let slices: Vec<&[u8]> = paths.iter().map(Vec::as_slice).collect();
    let plan = options(&slices).plan(Method::Mount2, 10).unwrap();
    assert!(plan.data.to_bytes().len() <= MAX_DATA && plan.data.to_bytes().len() > MAX_DATA - 100);
    assert!(!plan.opens.is_empty() && plan.opens.len() < 60);
    assert_eq!(plan.opens[0].fd, 10);
}

#[test]
fn what_no_kernel_takes_is_refused() {
    let many: Vec<Vec<u8>> = (0..=MAX_LOWERS).map(|i| format!("/{i}").into_bytes()).collect();
    let slices: Vec<&[u8]> = many.iter().map(Vec::as_slice).collect();
    assert_eq!(spec_error(&options(&slices)), "lower: 501 layers; the kernel's limit is 500");
    assert!(options(&slices[..MAX_LOWERS]).plan(Method::Append, 3).is_ok());
    assert!(spec_error(&options(&[])).contains("at least one"));
    assert!(spec_error(&options(&[b"/a", b"/a"])).contains("twice"));
    assert!(spec_error(&options(&[b"/a\0"])).contains("no path"));
    assert!(spec_error(&options(&[&[b'a'; 5000]])).contains("5000 bytes"));
    assert!(spec_error(&Options { work: None, ..options(&[b"/a"]) }).starts_with("work"));
    assert!(spec_error(&Options { upper: None, ..options(&[b"/a"]) }).starts_with("upper"));
    let alone = Options { upper: None, work: None, ..options(&[b"/a"]) };
    assert!(spec_error(&alone).contains("bind mount"));
    assert!(spec_error(&Options { redirect: true, ..options(&[b"/a"]) }).starts_with("redirect"));
}

#[test]
fn root_turns_redirects_and_metacopy_off_aloud() {
    let mut o = options(&[b"/a"]);
    (o.userxattr, o.user_namespace, o.volatile) = (false, false, true);
    let plan = o.plan(Method::Append, 3).unwrap();
    assert_eq!(shown(&plan)[4..], ["volatile", "index=off", "metacopy=off", "redirect_dir=off"]);
    o.redirect = true;
    assert_eq!(shown(&o.plan(Method::Append, 3).unwrap()).last().unwrap(), "redirect_dir=on");
}

#[test]
fn the_line_for_mount8_is_quoted_for_sh() {
    let line = options(&[b"/it's", b"/q\"x"]).mount_line(Path::new("/m d")).unwrap();
    assert_eq!(
        line.to_str().unwrap(),
        "mount -t overlay overlay -o 'lowerdir=/it'\\''s:/proc/self/fd/3,upperdir=/u,workdir=/w,userxattr,index=off' \
         '/m d' 3<'/q\"x'"
    );
    let line = options(&[&[b'x'; 300]]).mount_line(Path::new("-m")).unwrap();
    assert!(line.to_str().unwrap().starts_with("LIBMOUNT_FORCE_MOUNT2=always mount -t overlay"));
    assert!(line.to_str().unwrap().ends_with(" -- -m"));
    let quotes: Vec<Vec<u8>> = (0..8).map(|i| format!("/\"{i}").into_bytes()).collect();
    let slices: Vec<&[u8]> = quotes.iter().map(Vec::as_slice).collect();
    assert!(options(&slices).mount_line(Path::new("/m")).is_err());
}

#[test]
fn releases_are_compared_as_numbers() {
    assert_eq!(Method::of_release("6.18.44-fc-v669"), Method::Append);
    assert_eq!(Method::of_release("6.5.0"), Method::Append);
    assert_eq!(Method::of_release("5.15.0-generic"), Method::Join);
    assert_eq!(Method::of_release("10.0"), Method::Append);
    assert_eq!(Method::of_release("rubbish"), Method::Join);
}
