plugins {
    alias(libs.plugins.android.application)
}

android {
    namespace = "org.tfdwd.demo"
    compileSdk = libs.versions.compileSdk.get().toInt()

    defaultConfig {
        applicationId = libs.versions.applicationId.get()
        minSdk = libs.versions.minSdk.get().toInt()
        targetSdk = libs.versions.targetSdk.get().toInt()
        versionCode = libs.versions.versionCode.get().toInt()
        versionName = libs.versions.versionName.get()
        ndk {
            abiFilters += listOf("arm64-v8a", "armeabi-v7a", "x86_64")
        }
    }

    // The key of build_apk, so that the app of either build can be installed over the other's.
    signingConfigs.getByName("debug") {
        storeFile = rootProject.file("debug.keystore")
        storePassword = "android"
        keyAlias = "androiddebugkey"
        keyPassword = "android"
    }
    // As build_apk --release: that key, too. Gradle makes only the debug build debuggable.
    buildTypes.getByName("release").signingConfig = signingConfigs.getByName("debug")

    compileOptions {
        sourceCompatibility = JavaVersion.VERSION_1_8
        targetCompatibility = JavaVersion.VERSION_1_8
    }

    sourceSets.getByName("main").java.srcDir("../core/src/main/java")

    androidResources {
        noCompress += "tflite"
    }
}

dependencies {
    implementation(libs.litert)
}
